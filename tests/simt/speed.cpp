// What the runner costs: CPU time of one OS thread, the best of three. Prints, asserts nothing.
#include <ctime>

#include "../../csrc/simt/machine.h"
#include "kernels/flash.cuh"
#include "kernels/gemm.cuh"
#include "kernels/pointwise.cuh"
#include "program.h"

__global__ void nothing(float*) {}
__global__ void barriers(float*, int n) {
  for (int i = 0; i < n; i++) __syncthreads();
}
__global__ void shuffles(float* y, int n) {
  float v = float(threadIdx.x);
  for (int i = 0; i < n; i++) v = __shfl_xor_sync(~0u, v, 1);
  y[threadIdx.x] = v;
}

template <class F>
static double seconds(F f) {
  auto now = [] {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
  };
  double best = INFINITY;
  for (int i = 0; i < 3; i++) {
    const double start = now();
    f();
    best = std::min(best, now() - start);
  }
  return best;
}

static void cases() {
  dlops::simt::set_options({dlops::simt::Order::plain, 1, 1});
  std::vector<float> y(1 << 20);
  using dlops::launch;
  std::printf("empty block of 256 threads        %8.2f us\n",
              seconds([&] { must(launch(nothing, {dim3(1000), dim3(256)}, y.data())); }) * 1e3);
  std::printf("__syncthreads, 256 threads        %8.2f us\n",
              seconds([&] { must(launch(barriers, {dim3(1), dim3(256)}, y.data(), 1000)); }) * 1e3);
  std::printf("shuffle, one warp                 %8.2f us\n",
              seconds([&] { must(launch(shuffles, {dim3(1), dim3(32)}, y.data(), 10000)); }) * 1e2);
  const auto x = normals<float>(64 * 4096, 1);
  std::printf("softmax 64 x 4096                 %8.2f ms\n",
              seconds([&] {
                must(launch(pointwise::softmax_rows, {dim3(64), dim3(256)}, x.data(), y.data(), 4096));
              }) * 1e3);
  for (int l : {128, 256}) {
    const auto q = normals<flash::bf16>(2 * l * 64, 1);
    std::vector<flash::bf16> o(q.size());
    const flash::Params p{q.data(), q.data(), q.data(), o.data(), y.data(), l, l, 2, 2, .125f, false};
    std::printf("flash attention B1 H2 L%-3d D64    %8.2f ms\n", l,
                seconds([&] { must(flash::launch<64>(p, 1)); }) * 1e3);
  }
  const auto a = normals<gemm::bf16>(256 * 256, 1);
  std::printf("GEMM 256 x 256 x 256, wgmma       %8.2f ms\n",
              seconds([&] { must(gemm::launch(a.data(), a.data(), y.data(), 256, 256, 256)); }) * 1e3);
}

int main() { return program(cases); }
