#include "kernels/flash.cuh"
#include "program.h"

using flash::bf16;

template <int D>
static void attend(int batch, int heads, int kv_heads, int lq, int lk, bool causal) {
  const auto q = normals<bf16>(size_t(batch) * lq * heads * D, 1);
  const auto k = normals<bf16>(size_t(batch) * lk * kv_heads * D, 2), v = normals<bf16>(k.size(), 3);
  std::vector<bf16> o(q.size(), bf16(NAN));
  std::vector<float> lse(size_t(batch) * heads * lq, NAN);
  const float scale = 1.f / std::sqrt(float(D));
  must(flash::launch<D>(
      {q.data(), k.data(), v.data(), o.data(), lse.data(), lq, lk, heads, kv_heads, scale, causal}, batch));

  double o_error = 0, lse_error = 0;
  std::vector<double> s(lk);
  for (int b = 0; b < batch; b++)
    for (int h = 0; h < heads; h++)
      for (int i = 0; i < lq; i++) {
        const bf16* qi = &q[((size_t(b) * lq + i) * heads + h) * D];
        auto row = [&](const std::vector<bf16>& t, int j) {
          return &t[((size_t(b) * lk + j) * kv_heads + h / (heads / kv_heads)) * D];
        };
        const int keys = causal ? std::min(lk, std::max(0, i + lk - lq + 1)) : lk;
        double sum = 0;
        for (int j = 0; j < keys; j++) {
          double dot = 0;
          for (int d = 0; d < D; d++) dot += double(float(qi[d])) * float(row(k, j)[d]);
          sum += s[j] = std::exp(dot / std::sqrt(double(D)));
        }
        for (int d = 0; d < D; d++) {
          double exact = 0;
          for (int j = 0; j < keys; j++) exact += s[j] / sum * float(row(v, j)[d]);
          o_error = worse(std::fabs(exact - float(o[qi - q.data() + d])), o_error);
        }
        const float l = lse[(size_t(b) * heads + h) * lq + i];
        lse_error = worse(keys ? std::fabs(l - std::log(sum)) : l == -INFINITY ? 0 : 1, lse_error);
      }
  const std::string name = "attention D" + std::to_string(D) + " " + std::to_string(lq) + " x " +
                           std::to_string(lk) + (causal ? " causal" : "");
  expect(name + ", output", o_error, 2e-2);
  expect(name + ", LSE", lse_error, 1e-4);
}

static void cases() {
  attend<64>(1, 2, 2, 64, 64, false);
  attend<64>(1, 1, 1, 1, 1, true);
  attend<64>(2, 4, 2, 77, 77, true);
  attend<64>(1, 2, 1, 130, 200, false);
  attend<64>(1, 2, 1, 33, 129, true);
  attend<64>(1, 1, 1, 100, 50, true);  // rows without a key
  attend<128>(1, 2, 1, 65, 191, true);
}

int main() { return program(cases); }
