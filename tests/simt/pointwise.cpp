#include "kernels/pointwise.cuh"
#include "program.h"

static void cases() {
  for (int columns : {1, 33, 1000}) {
    const int rows = 7;
    const auto x = normals<float>(rows * columns, columns);
    std::vector<float> y(x.size(), NAN);
    must(dlops::launch(pointwise::softmax_rows, {dim3(rows), dim3(256)}, x.data(), y.data(), columns));
    double error = 0;
    for (int r = 0; r < rows; r++) {
      double sum = 0;
      for (int i = 0; i < columns; i++) sum += std::exp(double(x[r * columns + i]));
      for (int i = 0; i < columns; i++)
        error = worse(std::fabs(y[r * columns + i] - std::exp(double(x[r * columns + i])) / sum), error);
    }
    expect("softmax 7 x " + std::to_string(columns), error, 1e-6);
  }

  const int batch = 5, hidden = 77;
  const auto gates = normals<float>(batch * 4 * hidden, 1), c = normals<float>(batch * hidden, 2);
  std::vector<float> c_out(c.size(), NAN), h_out(c.size(), NAN);
  must(dlops::launch(pointwise::lstm_cell<float>, {dim3(2), dim3(64)}, gates.data(), c.data(), c_out.data(),
                     h_out.data(), batch, hidden));
  double error = 0;
  for (int i = 0; i < batch * hidden; i++) {
    auto gate = [&](int g) { return double(gates[(i / hidden * 4 + g) * hidden + i % hidden]); };
    auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    const double cell = sigmoid(gate(1)) * c[i] + sigmoid(gate(0)) * std::tanh(gate(2));
    error = worse(std::fabs(c_out[i] - cell), error);
    error = worse(std::fabs(h_out[i] - sigmoid(gate(3)) * std::tanh(cell)), error);
  }
  expect("LSTM cell", error, 1e-6);

  const auto x = normals<float>(1000, 3);
  std::vector<float> scan(128, NAN);
  must(dlops::launch(pointwise::scan_block, {dim3(1), dim3(128), 512}, x.data(), scan.data()));
  double sum = 0;
  error = 0;
  for (int i = 0; i < 128; i++) error = worse(std::fabs(scan[i] - (sum += x[i])), error);
  expect("scan", error, 1e-4);

  std::vector<float> part(4, NAN), out(1, NAN);
  must(dlops::launch(pointwise::grid_sum, {dim3(4), dim3(64), 0, nullptr, dim3(1), true}, x.data(),
                     part.data(), out.data(), 1000));
  sum = 0;
  for (float v : x) sum += v;
  expect("cooperative sum", std::fabs(out[0] - sum), 1e-4);
}

int main() { return program(cases); }
