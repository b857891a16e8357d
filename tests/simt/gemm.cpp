#include "kernels/gemm.cuh"
#include "program.h"

static void multiply(int m, int n, int k) {
  const auto a = normals<gemm::bf16>(size_t(m) * k, 1), b = normals<gemm::bf16>(size_t(n) * k, 2);
  std::vector<float> c(size_t(m) * n, NAN);
  must(gemm::launch(a.data(), b.data(), c.data(), m, n, k));
  double error = 0;
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      double exact = 0;
      for (int l = 0; l < k; l++) exact += double(float(a[size_t(i) * k + l])) * float(b[size_t(j) * k + l]);
      error = worse(std::fabs(exact - c[size_t(i) * n + j]), error);
    }
  expect("GEMM " + std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k), error, 1e-3);
}

static void cases() {
  multiply(128, 128, 64);
  multiply(100, 136, 200);  // copies reach past the edges
  multiply(128, 128, 640);  // the ring of stages wraps
}

int main() { return program(cases); }
