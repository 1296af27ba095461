// Decode, prefill, load and swap times of several programs in one interleaved run:
//   decode PREFILL ROUNDS STEPS DIGESTS NAME=model.pte NAME=model.pte@package[@task] ...
// DIGESTS 1 opens packages as by default, 0 without comparing the files' SHA-256, CACHE=folder without
// that and with a weight cache. With a package the session of libhydrapack runs a program; without one
// it takes (tokens, positions, rows) and, where it has more inputs, 1 and random floats for them.
// Prints one JSON object.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <unistd.h>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <hydrapack/session.h>

using Clock = std::chrono::steady_clock;
using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

namespace {

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Pages of files that are mapped and of memory of our own, in bytes.
void resident(long& all, long& shared) {
  long whole = 0;
  all = shared = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld %ld", &whole, &all, &shared) != 3) all = shared = 0;
    std::fclose(file);
  }
  all *= sysconf(_SC_PAGESIZE);
  shared *= sysconf(_SC_PAGESIZE);
}

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(1);
}

// What `program` takes beside tokens, positions and rows: the switch and the adapter's matrices.
std::vector<TensorPtr> matrices(Module& program) {
  const auto meta = program.method_meta("forward");
  if (!meta.ok()) fail("forward has no description");
  std::mt19937 generator(0);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::vector<TensorPtr> found;
  for (size_t i = 3; i < meta->num_inputs(); i++) {
    const auto input = meta->input_tensor_meta(i);
    if (!input.ok()) fail("an input is no tensor");
    if (input->scalar_type() == ScalarType::Long) {
      found.push_back(executorch::extension::make_tensor_ptr(int64_t{1}));
      continue;
    }
    std::vector<float> values(input->nbytes() / sizeof(float));
    for (float& value : values) value = normal(generator);
    const auto sizes = input->sizes();
    found.push_back(executorch::extension::make_tensor_ptr(
        std::vector<executorch::aten::SizesType>(sizes.begin(), sizes.end()), std::move(values)));
  }
  return found;
}

struct Program {
  std::string name;
  std::unique_ptr<Module> plain;
  std::vector<TensorPtr> adapter;
  std::unique_ptr<hydrapack::Session> session;
  int64_t position = 0;
  double load_ms = 0, prefill_ms = 0;
  long loaded_bytes = 0, used_bytes = 0;
  std::vector<double> steps;

  void run(std::vector<int64_t> ids) {
    if (session) {
      const auto error = session->prefill(ids);
      if (!error.ok()) fail(name + ": " + error.message);
      return;
    }
    const auto count = static_cast<int32_t>(ids.size());
    std::vector<int64_t> positions(ids.size()), row{count - 1};
    for (auto& p : positions) p = position++;
    // An EValue does not keep its tensor alive.
    std::vector<TensorPtr> tensors{
        from_blob(ids.data(), {1, count}, ScalarType::Long),
        from_blob(positions.data(), {count}, ScalarType::Long),
        from_blob(row.data(), {1}, ScalarType::Long)};
    tensors.insert(tensors.end(), adapter.begin(), adapter.end());
    auto outputs = plain->forward(std::vector<EValue>(tensors.begin(), tensors.end()));
    if (!outputs.ok()) fail(name + ": forward failed");
  }

  void reset() {
    position = 0;
    if (session && !session->reset().ok()) fail(name + ": reset failed");
  }
};

void print(const char* key, std::vector<double> values, const char* end) {
  std::sort(values.begin(), values.end());
  std::printf(
      "\"%s\": {\"median\": %.4f, \"min\": %.4f}%s", key, values[values.size() / 2], values[0], end);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) fail("decode PREFILL ROUNDS STEPS DIGESTS NAME=model.pte[@package[@task]] ...");
  const long prefill = std::atol(arguments[1]), rounds = std::atol(arguments[2]);
  const long steps = std::atol(arguments[3]);
  hydrapack::OpenOptions options;
  const std::string digests = arguments[4];
  if (digests != "1") options.check_digests = false;
  if (digests.rfind("CACHE=", 0) == 0) options.weight_cache = digests.substr(6);
  std::vector<Program> programs;
  for (int i = 5; i < count; i++) {
    const std::string text = arguments[i];
    const size_t equals = text.find('='), at = text.find('@');
    Program program;
    program.name = text.substr(0, equals);
    const std::string model = text.substr(equals + 1, at - equals - 1);
    long before = 0, shared = 0, after = 0;
    resident(before, shared);
    const auto started = Clock::now();
    if (at == std::string::npos) {
      program.plain = std::make_unique<Module>(model, Module::LoadMode::Mmap);
      if (program.plain->load_method("forward") != executorch::runtime::Error::Ok) {
        fail(model + " cannot be loaded");
      }
      program.adapter = matrices(*program.plain);
      program.load_ms = ms_since(started);
    } else {
      const size_t second = text.find('@', at + 1);
      auto opened = hydrapack::Session::open(model, text.substr(at + 1, second - at - 1), options);
      if (!opened.ok()) fail(opened.error().message);
      program.session = std::move(opened.value());
      program.load_ms = ms_since(started);
      if (second != std::string::npos) {
        const auto error = program.session->use(text.substr(second + 1));
        if (!error.ok()) fail(error.message);
      }
    }
    resident(after, shared);
    program.loaded_bytes = after - before;
    program.run(std::vector<int64_t>(prefill, 5));
    program.run({5});
    resident(after, shared);
    program.used_bytes = after - before;
    programs.push_back(std::move(program));
  }
  for (Program& program : programs) program.prefill_ms = 1e9;
  for (long round = 0; round < rounds; round++) {
    for (Program& program : programs) {
      program.reset();
      const auto started = Clock::now();
      program.run(std::vector<int64_t>(prefill, 5));
      program.prefill_ms = std::min(program.prefill_ms, ms_since(started));
      for (long step = 0; step < steps; step++) {
        const auto start = Clock::now();
        program.run({5});
        program.steps.push_back(ms_since(start));
      }
    }
  }
  std::printf("{");
  for (size_t i = 0; i < programs.size(); i++) {
    Program& program = programs[i];
    std::printf(
        "%s\"%s\": {\"load_ms\": %.2f, \"prefill_ms\": %.2f, \"loaded_bytes\": %ld, "
        "\"used_bytes\": %ld, ",
        i ? ", " : "",
        program.name.c_str(),
        program.load_ms,
        program.prefill_ms,
        program.loaded_bytes,
        program.used_bytes);
    print("decode_ms", program.steps, "");
    if (program.session) {
      std::vector<double> swaps;
      const auto& tasks = program.session->tasks();
      for (size_t k = 0; k < 40; k++) {
        if (!program.session->use(tasks[k % tasks.size()].name).ok()) fail("a swap failed");
        swaps.push_back(program.session->stats().swap_ms);
      }
      long now = 0, shared = 0;
      resident(now, shared);
      std::printf(", \"swapped_bytes\": %ld, ", now);
      print("swap_ms", swaps, "");
    }
    std::printf("}");
  }
  std::printf("}\n");
  return 0;
}
