#include "kernels/proxy.cuh"
#include "program.h"

using proxy::bf16;

static std::vector<bf16> integers(size_t n, int step, int range) {  // small: sums are exact
  std::vector<bf16> values(n);
  for (size_t i = 0; i < n; i++) values[i] = bf16(float(int(i) * step % range) - range / 2);
  return values;
}

static double product_error(const bf16* a, const bf16* b, bool b_is_kn, const std::vector<float>& out) {
  double error = 0;
  for (int m = 0; m < 64; m++)
    for (int n = 0; n < 64; n++) {
      double exact = 0;
      for (int k = 0; k < 64; k++)
        exact += float(a[m * 64 + k]) * float(b_is_kn ? b[k * 64 + n] : b[n * 64 + k]);
      error = worse(std::fabs(exact - out[m * 64 + n]), error);
    }
  return error;
}

static void cases() {
  const auto ab = integers(128 * 64, 37, 19), b = integers(64 * 64, 29, 23);
  std::vector<float> out(64 * 64, NAN);
  must(dlops::launch(proxy::stores_then_wgmma, {dim3(1), dim3(128), 16384}, ab.data(), out.data()));
  expect("stores, then wgmma", product_error(ab.data(), ab.data() + 64 * 64, false, out), 0);

  CUtensorMap map_a, map_b, map_out;
  must(dlops::tensor_map<bf16, 2>(&map_a, ab.data(), {64, 64}, {128}, {64, 64}, dlops::Swizzle::b128));
  must(dlops::tensor_map<bf16, 2>(&map_b, b.data(), {64, 64}, {128}, {64, 64}, dlops::Swizzle::b128));
  out.assign(out.size(), NAN);
  must(dlops::launch(proxy::tma_then_wgmma, {dim3(1), dim3(128), 16384 + 8}, map_a, map_b, out.data()));
  expect("TMA, then wgmma with N contiguous", product_error(ab.data(), b.data(), true, out), 0);

  constexpr int kTiles = 5;
  const auto x = integers(kTiles * 64 * 64, 31, 21);
  std::vector<bf16> y(x.size(), bf16(NAN));
  must(dlops::tensor_map<bf16, 2>(&map_out, y.data(), {64, kTiles * 64}, {128}, {64, 64},
                                  dlops::Swizzle::none));
  must(dlops::launch(proxy::stores_then_tma, {dim3(1), dim3(128), 16384}, x.data(), map_out, kTiles));
  double error = 0;
  for (size_t i = 0; i < x.size(); i++) error = worse(std::fabs(float(x[i]) + 1 - float(y[i])), error);
  expect("stores, then TMA store", error, 0);
}

int main() { return program(cases); }
