#include "kernels/cluster.cuh"
#include "program.h"

static void cases() {
  const auto x = normals<float>(512, 1);
  std::vector<float> y(x.size(), NAN);
  must(cluster::launch(x.data(), y.data(), 512));
  double error = 0;
  for (int i = 0; i < 512; i++) error = worse(std::fabs(y[i] - x[i ^ 64]), error);
  expect("blocks of a cluster", error, 0);
}

int main() { return program(cases); }
