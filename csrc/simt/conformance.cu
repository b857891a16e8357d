// conformance FOLDER: runs every case that this GPU can, and leaves in FOLDER one file of output bytes per case and
// index.json. `make gpu` runs it; dlops/study/golden.py packs the folder.
#include <cstdio>
#include <ctime>
#include <fstream>
#include <sstream>

#include "conformance.cpp"

namespace {

using dlops::conformance::Bytes;
using dlops::conformance::Case;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return out + '"';
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// The driver's release as its module tells it, or the CUDA version that it speaks.
std::string driver() {
  std::ifstream told("/sys/module/nvidia/version");
  std::string release;
  if (told >> release) return release;
  int number = 0;
  cudaDriverGetVersion(&number);
  return "CUDA " + version(number);
}

std::string date() {
  char text[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(text, sizeof text, "%Y-%m-%d", std::gmtime(&now));
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp gpu;
  if (argc != 2) return std::fprintf(stderr, "usage: conformance FOLDER\n"), 2;
  if (cudaGetDeviceProperties(&gpu, 0) != cudaSuccess)
    return std::fprintf(stderr, "conformance: no GPU\n"), 3;
  const std::string folder = argv[1];
  const int architecture = 10 * gpu.major + gpu.minor;
  int runtime = 0, failed = 0;
  cudaRuntimeGetVersion(&runtime);

  std::ostringstream cases;
  for (const Case& c : dlops::conformance::conformance_cases()) {
    std::string error;
    Bytes bytes;
    std::printf("%s\n", c.name.c_str()), std::fflush(stdout);  // the last line names a case that hangs
    // wgmma and setmaxnreg exist on sm_90 alone, and later devices have not been looked at.
    if (architecture < c.architecture || (c.architecture == 90 && architecture != 90)) {
      error = "not on sm_" + std::to_string(architecture);
    } else {
      try {
        bytes = c.run();
      } catch (const std::exception& e) {
        error = e.what();
        failed++;
        std::printf("  %s\n", error.c_str());
        cudaDeviceReset();  // or every later case would see the same error
      }
    }
    std::ofstream(folder + "/" + c.name + ".bin", std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    cases << (cases.tellp() > 0 ? ",\n" : "") << "    " << quoted(c.name) << ": {\"wrappers\": [";
    for (size_t i = 0; i < c.wrappers.size(); i++) cases << (i ? ", " : "") << quoted(c.wrappers[i]);
    cases << "], \"error\": " << (error.empty() ? "null" : quoted(error)) << "}";
    // Written anew after every case: what follows may hang.
    std::ofstream(folder + "/index.json")
        << "{\n  \"gpu\": " << quoted(gpu.name) << ",\n  \"architecture\": " << architecture
        << ",\n  \"driver\": " << quoted(driver()) << ",\n  \"runtime\": " << quoted(version(runtime))
        << ",\n  \"date\": " << quoted(date()) << ",\n  \"cases\": {\n"
        << cases.str() << "\n  }\n}\n";
  }
  return failed ? 1 : 0;
}
