// Opening: what is checked of the files.
#include <filesystem>
#include <random>

#include "fixtures.h"

using namespace hydrapack;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

Error refused(const std::string& model, const std::string& package, const OpenOptions& options = {}) {
  const auto result = Session::open(model, package, options);
  return result.ok() ? Error{} : result.error();
}

OpenOptions signed_by(const std::string& key, bool check_digests = true) {
  return {check_digests, key};
}

std::string public_key() { return expected()["public_key"].get<std::string>(); }

}  // namespace

TEST(Open, StatsAreFilled) {
  NEED_FIXTURES();
  const auto session = opened();
  ASSERT_TRUE(session->use(session->tasks()[0].name).ok());
  ASSERT_TRUE(session->generate(prompt(), {}).ok());
  const Stats stats = session->stats();
  EXPECT_GT(stats.load_ms, 0);
  EXPECT_GT(stats.swap_ms, 0);
  EXPECT_GT(stats.prefill_ms, 0);
  EXPECT_EQ(stats.prefill_tokens, static_cast<int64_t>(prompt().size()));
  EXPECT_EQ(stats.model_bytes, static_cast<int64_t>(fs::file_size(model())));
  EXPECT_GT(stats.adapter_bytes, 0);
  EXPECT_GT(stats.resident_bytes, 1 << 20);
}

TEST(Open, MissingFiles) {
  NEED_FIXTURES();
  EXPECT_EQ(refused("none.pte", package()).code, Code::NotFound);
  EXPECT_EQ(refused(model(), "nowhere").code, Code::NotFound);
  EXPECT_EQ(refused(model(), model()).code, Code::NotFound);  // no folder
  const Copy copy;
  // Without the file that has the model's digest, only on demand.
  const auto undescribed = refused(copy.model(), copy.package());
  EXPECT_EQ(undescribed.code, Code::NotFound);
  EXPECT_NE(undescribed.message.find("model.pte.json: missing"), std::string::npos);
  EXPECT_EQ(copy.code(false), Code::Ok);
  fs::remove(copy.file("adapters.pte"));
  EXPECT_EQ(copy.code(false), Code::NotFound);
}

TEST(Open, TheBareBaseModelAlone) {
  NEED_FIXTURES();
  const auto session = std::move(Session::open(model(), "").value());
  EXPECT_TRUE(session->tasks().empty());
  EXPECT_EQ(session->use("one").code, Code::NotFound);
  ASSERT_TRUE(session->use(std::nullopt).ok());
  const auto whole = opened();
  EXPECT_EQ(
      session->generate(prompt(), {}).value().ids, whole->generate(prompt(), {}).value().ids);
  EXPECT_EQ(refused(model(), "", signed_by(public_key())).code, Code::Invalid);
}

TEST(Open, FilesThatCannotBeRead) {
  NEED_FIXTURES();
  for (const char* name : {"manifest.json", "adapters.pte"}) {
    const Copy copy;
    ASSERT_EQ(copy.code(false), Code::Ok);
    // A folder in its place: there, and no file.
    fs::remove(copy.file(name));
    fs::create_directory(copy.file(name));
    EXPECT_EQ(copy.code(false), Code::Io) << name;
  }
  const Copy copy;
  fs::create_directory(copy.model() + ".json");
  EXPECT_EQ(copy.code(false), Code::Io);
  if (::geteuid() != 0) {
    fs::permissions(copy.file("manifest.json"), fs::perms::none);
    EXPECT_EQ(copy.code(false), Code::Io);
  }
}

TEST(Open, DescriptionsOfTheModel) {
  NEED_FIXTURES();
  const Copy copy;
  const json whole = json::parse(read_file(::model() + ".json"));
  const std::vector<std::pair<json, Code>> cases = {
      {whole, Code::Ok},
      {json::array(), Code::Invalid},
      {{{"bytes", whole["bytes"]}}, Code::Invalid},
      {{{"bytes", -1}, {"sha256", whole["sha256"]}}, Code::Invalid},
      {{{"bytes", 1ull << 63}, {"sha256", whole["sha256"]}}, Code::Invalid},
      {{{"bytes", whole["bytes"]}, {"sha256", "abc"}}, Code::Invalid},
      {{{"bytes", 5}, {"sha256", whole["sha256"]}}, Code::Mismatch},
      {{{"bytes", whole["bytes"]}, {"sha256", std::string(64, 'a')}}, Code::Mismatch},
  };
  for (const auto& [content, code] : cases) {
    write_file(copy.model() + ".json", content.dump());
    EXPECT_EQ(copy.code(), code) << content;
  }
  // Without digests the last one is not looked at, the size is.
  EXPECT_EQ(copy.code(false), Code::Ok);
  write_file(copy.model() + ".json", cases[6].first.dump());
  EXPECT_EQ(copy.code(false), Code::Mismatch);
}

TEST(Open, PackedWeightsAreKept) {
  NEED_FIXTURES();
  const Copy copy;
  fs::copy(::model() + ".json", copy.model() + ".json");
  const fs::path folder = fs::path(copy.model()).parent_path() / "cache";
  OpenOptions options;
  options.weight_cache = folder.string();
  EXPECT_EQ(refused(copy.model(), copy.package(), options).code, Code::NotFound);
  fs::create_directory(folder);
  const auto answer = [&](const OpenOptions& with) {
    auto session = std::move(Session::open(copy.model(), copy.package(), with).value());
    EXPECT_TRUE(session->use(session->tasks()[0].name).ok());
    return session->generate(prompt(), {}).value().ids;
  };
  const auto want = answer({});
  ASSERT_FALSE(want.empty());
  EXPECT_EQ(answer(options), want);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  // The packed weights and their note, and nothing half made.
  ASSERT_EQ(files.size(), 2u);
  std::sort(files.begin(), files.end());
  EXPECT_EQ(files[1].string(), files[0].string() + ".sha256");
  const auto made = fs::last_write_time(files[0]);
  const std::string whole = read_file(files[0]);
  EXPECT_EQ(answer(options), want);
  EXPECT_EQ(fs::last_write_time(files[0]), made);
  // A damaged one is found and made again, whatever is damaged.
  for (size_t at : {size_t{0}, whole.size() / 2, whole.size() - 1}) {
    std::string damaged = whole;
    damaged[at] ^= 1;
    fs::remove(files[0]);
    write_file(files[0], damaged);
    EXPECT_EQ(answer(options), want);
    EXPECT_EQ(read_file(files[0]), whole) << at;
  }
  fs::remove(files[0]);
  write_file(files[0], whole.substr(0, whole.size() / 2));
  options.check_digests = false;
  EXPECT_EQ(answer(options), want);
  EXPECT_EQ(fs::file_size(files[0]), whole.size());
  fs::remove(files[1]);
  EXPECT_EQ(answer(options), want);
  EXPECT_TRUE(fs::exists(files[1]));
  // Nobody knows whose weights they are without the program's digest.
  fs::remove(copy.model() + ".json");
  EXPECT_EQ(refused(copy.model(), copy.package(), options).code, Code::NotFound);
  options.weight_cache = "/" + std::string(300, 'x');
  EXPECT_FALSE(Session::open(copy.model(), copy.package(), options).ok());
}

TEST(Open, ProgramsInTheWrongPlace) {
  NEED_FIXTURES();
  const auto swapped = refused(package() + "/adapters.pte", package(), {false, ""});
  EXPECT_EQ(swapped.code, Code::Invalid);
  EXPECT_NE(swapped.message.find("no method forward"), std::string::npos);
  const auto other = refused(fixtures() + "/other.pte", package());
  EXPECT_EQ(other.code, Code::Mismatch);
  EXPECT_NE(other.message.find("adapters of rank 2"), std::string::npos);
}

TEST(Open, ProgramsOfOtherInputs) {
  NEED_FIXTURES();
  const Copy copy;
  std::string program = read_file(copy.model());
  // Programs exported before, whose switch is a truth value, do not state a version.
  const std::string method = "get_forward_version";
  for (size_t at = 0; (at = program.find(method, at)) != std::string::npos; at++) {
    program.replace(at, method.size(), "get_forward_nothing");
  }
  ASSERT_NE(program, read_file(copy.model()));
  write_file(copy.model(), program);
  const auto error = refused(copy.model(), copy.package(), {false, ""});
  EXPECT_EQ(error.code, Code::Invalid);
  EXPECT_NE(error.message.find("export it anew with hydrapack export-base"), std::string::npos)
      << error.message;
}

TEST(Open, AnotherBaseOfTheSameShape) {
  NEED_FIXTURES();
  const std::string twin = fixtures() + "/twin.pte";
  for (const bool check_digests : {true, false}) {
    const auto error = refused(twin, package(), {check_digests, ""});
    EXPECT_EQ(error.code, Code::Mismatch);
    EXPECT_NE(error.message.find("other weights"), std::string::npos) << error.message;
  }
  const Copy copy;
  copy.edit([](json& manifest) { manifest["base_model"]["weights_sha256"] = nullptr; });
  EXPECT_TRUE(refused(twin, copy.package(), {false, ""}).ok());
  copy.edit([](json& manifest) {
    manifest["base_model"]["tokenizer_sha256"] = std::string(64, 'a');
  });
  const auto error = refused(model(), copy.package(), {false, ""});
  EXPECT_EQ(error.code, Code::Mismatch);
  EXPECT_NE(error.message.find("other tokenizer"), std::string::npos) << error.message;
}

TEST(Open, Signatures) {
  NEED_FIXTURES();
  const std::string key = public_key(), other(64, 'a');
#if defined(HYDRAPACK_SIGNATURES)
  EXPECT_TRUE(refused(model(), package(), signed_by(key)).ok());
  EXPECT_TRUE(refused(model(), package(), signed_by(key, false)).ok());
  const auto stranger = refused(model(), package(), signed_by(other));
  EXPECT_EQ(stranger.code, Code::Mismatch);
  EXPECT_NE(stranger.message.find("signed by another key"), std::string::npos);
  for (const std::string& wrong :
       {std::string("a"), key + "00", std::string(64, 'g'), std::string(64, 'A')}) {
    EXPECT_EQ(refused(model(), package(), signed_by(wrong)).code, Code::Invalid) << wrong;
  }
  const Copy copy;
  const std::string path = copy.file("manifest.sig"), whole = read_file(path);
  const auto code = [&] { return refused(copy.model(), copy.package(), signed_by(key, false)).code; };
  EXPECT_EQ(code(), Code::Ok);
  // Every digit of the signature counts.
  const size_t digits = json::parse(whole)["signature"].get<std::string>().size();
  ASSERT_EQ(digits, 128u);
  const size_t start = whole.find("\"signature\": \"") + 14;
  for (size_t i = 0; i < digits; i += 9) {
    std::string changed = whole;
    changed[start + i] = changed[start + i] == '0' ? '1' : '0';
    write_file(path, changed);
    EXPECT_EQ(code(), Code::Mismatch) << i;
  }
  json content = json::parse(whole);
  for (const char* name : {"algorithm", "public_key", "signature"}) {
    for (const json& wrong : {json("x"), json(5), json(nullptr)}) {
      json changed = content;
      changed[name] = wrong;
      write_file(path, changed.dump());
      EXPECT_EQ(code(), Code::Invalid) << changed;
    }
    json changed = content;
    changed.erase(name);
    write_file(path, changed.dump());
    EXPECT_EQ(code(), Code::Invalid) << changed;
  }
  content["more"] = 1;
  for (const std::string& wrong : {content.dump(), std::string(), whole + "x", whole.substr(1)}) {
    write_file(path, wrong);
    EXPECT_EQ(code(), Code::Invalid) << wrong;
  }
  fs::remove(path);
  EXPECT_EQ(code(), Code::NotFound);
  write_file(path, whole);
  EXPECT_EQ(code(), Code::Ok);
  // Of the manifest's bytes, not of its content.
  write_file(copy.file("manifest.json"), read_file(copy.file("manifest.json")) + " ");
  EXPECT_EQ(code(), Code::Mismatch);
#else
  // Refused, not ignored.
  for (const std::string& any : {key, other}) {
    const auto error = refused(model(), package(), signed_by(any));
    EXPECT_EQ(error.code, Code::Invalid);
    EXPECT_NE(error.message.find("checks no signatures"), std::string::npos);
  }
#endif
}

TEST(Open, FlippedAndTruncatedFilesAreFound) {
  NEED_FIXTURES();
  const Copy copy;
  fs::copy(::model() + ".json", copy.model() + ".json");
  for (const std::string& path : {copy.file("adapters.pte"), copy.model()}) {
    const std::string whole = read_file(path);
    std::mt19937 random(1);
    for (int i = 0; i < 40; i++) {
      std::string changed = whole;
      changed[random() % changed.size()] ^= static_cast<char>(1 << (i % 8));
      write_file(path, changed);
      EXPECT_FALSE(copy.open().ok());
    }
    for (size_t size : {size_t{0}, size_t{3}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
      write_file(path, whole.substr(0, size));
      EXPECT_FALSE(copy.open(true).ok());
      EXPECT_FALSE(copy.open(false).ok());
    }
    write_file(path, whole);
    EXPECT_TRUE(copy.open().ok());
  }
}

TEST(Open, TruncatedProgramsAreFoundWithoutDigests) {
  NEED_FIXTURES();
  const Copy copy;  // without model.pte.json
  const std::string whole = read_file(copy.model());
  for (size_t size = 0; size < whole.size(); size += whole.size() / 50) {
    write_file(copy.model(), whole.substr(0, size));
    EXPECT_FALSE(copy.open(false).ok()) << size;
  }
}
