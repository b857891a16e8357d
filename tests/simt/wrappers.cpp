// The instruction wrappers in the simt runner against the models of the PTX manual. One line per check; the exit code is
// the number of those that failed. wrappers_copies.h has the copies, wrappers_wgmma.h wgmma.
#include "check.h"
#include "models.h"
#include "wrappers_copies.h"
#include "wrappers_wgmma.h"

namespace {

using namespace dlops;

// ---- mma.m16n8k16: fragments of A, B and D. 9.7.14.5.8 ----

template <class T>
__global__ void mma_kernel(float* d, const uint32_t* a, const uint32_t* b) {
  const int lane = threadIdx.x;
  uint32_t ra[4], rb[2];
  float rd[4];
  for (int i = 0; i < 4; i++) ra[i] = a[lane * 4 + i], rd[i] = d[lane * 4 + i];
  for (int i = 0; i < 2; i++) rb[i] = b[lane * 2 + i];
  ptx::mma_m16n8k16<T>(rd, ra, rb);
  for (int i = 0; i < 4; i++) d[lane * 4 + i] = rd[i];
}

template <class T>
void check_mma(const char* type) {
  int a[16][16], b[16][8], c[16][8];
  for (int i = 0; i < 256; i++) a[i / 16][i % 16] = models::value(i, 1);
  for (int i = 0; i < 128; i++)
    b[i / 8][i % 8] = models::value(i, 2), c[i / 8][i % 8] = 50 * models::value(i, 3);
  std::vector<uint32_t> ra(32 * 4), rb(32 * 2);
  std::vector<float> d(32 * 4);
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < 8; i++) {
      const models::Place p = models::mma_a(lane, i);
      put<T>(ra, lane * 8 + i, a[p.row][p.column]);
    }
    for (int i = 0; i < 4; i++) {
      const models::Place p = models::mma_b(lane, i), q = models::mma_d(lane, i);
      put<T>(rb, lane * 4 + i, b[p.row][p.column]);
      d[lane * 4 + i] = static_cast<float>(c[q.row][q.column]);
    }
  }
  run(mma_kernel<T>, {dim3(1), dim3(32)}, d.data(), ra.data(), rb.data());
  bool same = true;
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      const models::Place p = models::mma_d(lane, i);
      int sum = c[p.row][p.column];
      for (int k = 0; k < 16; k++) sum += a[p.row][k] * b[k][p.column];
      same &= d[lane * 4 + i] == static_cast<float>(sum);
    }
  check(same, std::string("mma.m16n8k16 fragments, ") + type);
}

// ---- ldmatrix, stmatrix: 9.7.14.5.15, 9.7.14.5.16 ----

// Row r of matrix m lies at the address that lane 8 m + r brings: here 80 bytes apart, in reverse.
constexpr int kPitch = 80, kMatrixBytes = 32 * kPitch;
DLOPS_DEVICE uint32_t row_address(const void* tile, int row) {
  return ptx::shared_address(tile) + static_cast<uint32_t>(31 - row) * kPitch;
}

template <int N, bool transpose>
__global__ void ldmatrix_kernel(uint32_t* out, const uint16_t* image) {
  DLOPS_DYNAMIC_SHARED(uint16_t, tile, 128);
  const int lane = threadIdx.x;
  for (int i = lane; i < kMatrixBytes / 2; i += 32) tile[i] = image[i];
  __syncwarp();
  uint32_t r[N];
  if constexpr (transpose)
    ptx::ldmatrix_trans(r, row_address(tile, lane));
  else
    ptx::ldmatrix(r, row_address(tile, lane));
  for (int i = 0; i < N; i++) out[lane * N + i] = r[i];
}

template <int N, bool transpose>
__global__ void stmatrix_kernel(uint16_t* image, const uint32_t* in) {
  DLOPS_DYNAMIC_SHARED(uint16_t, tile, 128);
  const int lane = threadIdx.x;
  for (int i = lane; i < kMatrixBytes / 2; i += 32) tile[i] = 0xffff;
  __syncwarp();
  uint32_t r[N];
  for (int i = 0; i < N; i++) r[i] = in[lane * N + i];
  if constexpr (transpose)
    ptx::stmatrix_trans(r, row_address(tile, lane));
  else
    ptx::stmatrix(r, row_address(tile, lane));
  __syncwarp();
  for (int i = lane; i < kMatrixBytes / 2; i += 32) image[i] = tile[i];
}

template <int N, bool transpose>
void check_matrix_moves() {
  const auto at = [](int matrix, models::Place p) {  // the element's number within the image
    if (transpose) p = {p.column, p.row};
    return (31 - (matrix * 8 + p.row)) * (kPitch / 2) + p.column;
  };
  std::vector<uint16_t> image(kMatrixBytes / 2);
  for (size_t i = 0; i < image.size(); i++) image[i] = static_cast<uint16_t>(i);
  std::vector<uint32_t> r(32 * N), sent(32 * N);
  run(ldmatrix_kernel<N, transpose>, {dim3(1), dim3(32), kMatrixBytes}, r.data(), image.data());
  bool loaded = true;
  std::vector<uint16_t> expected(image.size(), 0xffff);
  for (int lane = 0; lane < 32; lane++)
    for (int m = 0; m < N; m++)
      for (int i = 0; i < 2; i++) {
        const int element = at(m, models::matrix_8x8(lane, i));
        loaded &= (r[lane * N + m] >> (16 * i) & 0xffff) == image[element];
        const uint32_t mark = 64 * lane + 2 * m + i;
        sent[lane * N + m] |= mark << (16 * i);
        expected[element] = static_cast<uint16_t>(mark);
      }
  const std::string name = ".x" + std::to_string(N) + (transpose ? ".trans" : "");
  check(loaded, "ldmatrix" + name);
  run(stmatrix_kernel<N, transpose>, {dim3(1), dim3(32), kMatrixBytes}, image.data(), sent.data());
  check(image == expected, "stmatrix" + name);
}

}  // namespace

int main() {
  check_mma<__nv_bfloat16>("bf16");
  check_mma<__half>("f16");
  check_matrix_moves<1, false>();
  check_matrix_moves<2, false>();
  check_matrix_moves<4, false>();
  check_matrix_moves<1, true>();
  check_matrix_moves<2, true>();
  check_matrix_moves<4, true>();
  wgmma_checks::all();
  copy_checks::all();
  return failures;
}
