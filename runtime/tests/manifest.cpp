// The manifest reader, and the JSON under it.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "fixtures.h"
#include "json.h"
#include "manifest.h"

using namespace hydrapack;
using nlohmann::json;

namespace {

bool parses(const std::string& text) { return parse_json(text, "m").ok(); }

std::string nested(size_t depth) {
  return std::string(depth, '[') + std::string(depth, ']');
}

}  // namespace

TEST(StrictJson, WhatItTakes) {
  for (const char* text :
       {"{}", " [1, 2.5, -0, 1e3, true, null]\n", R"({"a": {"b": 1}, "c": {"b": 2}})",
        R"(["\u00fc", "ü", "\ud83d\ude00"])", "1e308", "123456789012345678901234567890"}) {
    EXPECT_TRUE(parses(text)) << text;
  }
  EXPECT_TRUE(parses(nested(64)));
}

TEST(StrictJson, WhatItRefuses) {
  using std::string_literals::operator""s;
  for (const std::string& text :
       {""s, "{"s, "{} x"s, "{}\0"s, "{}\0{}"s, "\0{}"s, "\xEF\xBB\xBF{}"s, "// c\n{}"s, "NaN"s,
        "[Infinity]"s, "-Infinity"s, "1e309"s, "[-1e999]"s, std::string(400, '9'), "[01]"s,
        "[1,]"s, "\"\xff\""s, "\"\xc0\xaf\""s, "\"\xed\xa0\x80\""s, "\"\xf4\x90\x80\x80\""s,
        "\"a\nb\""s, "\"\\ud800\""s, "\"\\udc00\""s, "\"\\ud800\\u0041\""s, "'a'"s,
        R"({"a": 1, "a": 1})"s, R"({"a": 1, "\u0061": 1})"s, R"([{"x": {"b": 1, "b": []}}])"s,
        nested(65), std::string(1 << 20, '['), std::string(1 << 20, '{')}) {
    const auto read = parse_json(text, "m");
    ASSERT_FALSE(read.ok()) << text.substr(0, 80);
    EXPECT_EQ(read.error().code, Code::Invalid);
    EXPECT_EQ(read.error().message.substr(0, 3), "m: ");
  }
}

class ManifestText : public ::testing::Test {
 protected:
  void SetUp() override {
    NEED_FIXTURES();
    text = read_file(fixtures() + "/package/manifest.json");
    content = json::parse(text);
  }

  // The message for the changed manifest, read without its digest; empty if it is read.
  std::string error() const {
    const auto read = parse_manifest(content.dump(), "m", false);
    if (read.ok()) return "";
    EXPECT_EQ(read.error().code, Code::Invalid);
    return read.error().message;
  }

  std::string text;
  json content;
};

TEST_F(ManifestText, IsRead) {
  const auto read = parse_manifest(text, "m", true);
  ASSERT_TRUE(read.ok()) << read.error().message;
  const Manifest& manifest = read.value();
  EXPECT_EQ(manifest.tasks.size(), content["tasks"].size());
  EXPECT_EQ(manifest.rank, content["rank"].get<int64_t>());
  EXPECT_EQ(manifest.tasks[1].route, content["tasks"][1]["route"].get<std::vector<int64_t>>());
  EXPECT_EQ(manifest.weights_sha256, content["base_model"]["weights_sha256"].get<std::string>());
  EXPECT_EQ(manifest.weights_sha256.size(), 64u);
  EXPECT_EQ(manifest.tokenizer_sha256.size(), 64u);
  EXPECT_EQ(error(), "");
}

TEST_F(ManifestText, DefaultsOfATask) {
  content["tasks"][0]["generation"] = {
      {"max_new_tokens", 7}, {"temperature", 0.5}, {"top_k", 3}, {"top_p", 0.25}};
  content["tasks"][0]["stop"] = {"\n\n", "END"};
  content["tasks"][0]["language"] = "de";
  const auto read = parse_manifest(content.dump(), "m", false);
  ASSERT_TRUE(read.ok());
  const Task& task = read.value().tasks[0].shown;
  EXPECT_EQ(task.max_new_tokens, 7);
  EXPECT_EQ(task.sampling.temperature, 0.5f);
  EXPECT_EQ(task.sampling.top_k, 3);
  EXPECT_EQ(task.sampling.top_p, 0.25f);
  EXPECT_EQ(task.stop, (std::vector<std::string>{"\n\n", "END"}));
  EXPECT_EQ(task.language, "de");
}

TEST_F(ManifestText, AnyChangedByteIsFound) {
  for (size_t at = 0; at < text.size(); at += 7) {
    std::string changed = text;
    changed[at] = static_cast<char>(changed[at] ^ (1 << (at % 7)));
    EXPECT_FALSE(parse_manifest(changed, "m", true).ok()) << at;
  }
  for (size_t size = 0; size < text.size(); size += 101) {
    EXPECT_FALSE(parse_manifest(text.substr(0, size), "m", true).ok()) << size;
  }
}

TEST_F(ManifestText, TheDigestIsOfTheBytes) {
  // In a key that the device does not use.
  std::string changed = text;
  const size_t at = changed.find("\"hydrapack_version\": \"") + 22;
  changed[at] = changed[at] == '9' ? '8' : '9';
  EXPECT_TRUE(parse_manifest(changed, "m", false).ok());
  const auto read = parse_manifest(changed, "m", true);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code, Code::Mismatch);
  // Another form of the same content has no line to take the digest of.
  const auto packed = parse_manifest(content.dump(), "m", true);
  ASSERT_FALSE(packed.ok());
  EXPECT_EQ(packed.error().code, Code::Invalid);
  EXPECT_NE(packed.error().message.find("not written as hydrapack"), std::string::npos);
}

TEST_F(ManifestText, EveryKeyThatIsUsedIsNeededAndTyped) {
  // For each key, what of these it takes; everything else is refused with the key's name.
  const std::map<std::string, json> values = {
      {"null", nullptr}, {"-1", -1}, {"1", 1}, {"1.0", 1.0}, {"1e300", 1e300}, {"true", true},
      {"2^63", 1ull << 63}, {"text", "x"}, {"empty", ""}, {"digest", std::string(64, 'a')},
      {"list", json::array()}, {"object", json::object()}};
  using Takes = std::set<std::string>;
  const std::vector<std::pair<const char*, Takes>> keys = {
      {"schema_version", {"1"}},
      {"package_digest", {"digest"}},
      {"layout_digest", {"digest"}},
      {"rank", {"1"}},
      {"heads", {}},  // 1 is fewer than a module has
      {"base_model", {}},
      {"base_model/id", {"text", "empty", "digest"}},
      {"base_model/weights_sha256", {"null", "digest"}},
      {"base_model/tokenizer_sha256", {"null", "digest"}},
      {"modules", {}},
      {"modules/0", {}},
      {"modules/0/heads", {"1"}},
      {"tasks", {}},
      {"tasks/0", {}},
      {"tasks/0/name", {"text", "digest"}},
      {"tasks/0/prompt_template", {}},
      {"tasks/0/stop", {"list"}},
      {"tasks/0/generation", {}},
      {"tasks/0/generation/max_new_tokens", {"1"}},
      {"tasks/0/generation/temperature", {"1", "1.0"}},
      {"tasks/0/generation/top_k", {"1"}},
      {"tasks/0/generation/top_p", {"1", "1.0"}},
      {"tasks/0/language", {"null", "text", "empty", "digest"}},
      {"tasks/0/route", {}},
      {"tasks/0/route/0", {"1"}},
      {"fallback", {}},
      {"files", {}},
      {"files/0", {}},
      {"files/0/name", {}},  // another name leaves no adapters.pte
      {"files/0/bytes", {"1"}},
      {"files/0/sha256", {"digest"}},
  };
  const json whole = content;
  // Head 1 of the first module is there for the route, and head 0 alone for modules/0/heads.
  for (const auto& [path, takes] : keys) {
    const json::json_pointer pointer(std::string("/") + path);
    ASSERT_TRUE(whole.contains(pointer)) << path;
    std::string key = path;
    std::replace(key.begin(), key.end(), '/', '.');
    for (const auto& [name, value] : values) {
      content = whole;
      if (std::string(path) == "modules/0/heads") {
        for (json& task : content["tasks"]) task["route"][0] = 0;
      }
      content[pointer] = value;
      const std::string message = error();
      EXPECT_EQ(message.empty(), takes.count(name) == 1) << path << " = " << name << ": " << message;
      if (!message.empty()) {
        // A value that alone is fine can contradict another key.
        const std::string first = key.substr(0, key.find('.'));
        const bool named = message.find(": " + first) != std::string::npos ||
            (first == "heads" && message.find(": modules.") != std::string::npos);
        EXPECT_TRUE(named) << path << " = " << name << ": " << message;
      }
    }
    if (key.back() == '0') continue;  // an entry of a list
    content = whole;
    const std::string parent = path;
    const size_t slash = parent.rfind('/');
    json& holder = slash == std::string::npos
        ? content
        : content[json::json_pointer("/" + parent.substr(0, slash))];
    holder.erase(slash == std::string::npos ? parent : parent.substr(slash + 1));
    EXPECT_EQ(error(), "m: " + key + ": is missing");
  }
}

TEST_F(ManifestText, UnusedKeysAreIgnored) {
  for (const char* key :
       {"hydrapack_version", "tools", "target_modules", "target_shapes", "group_size", "sources",
        "storage"}) {
    ASSERT_TRUE(content.contains(key));
    content[key] = 5;
  }
  content["tasks"][0]["more"] = json::array({1, nullptr});
  content["newer"] = {{"a", 1}};
  EXPECT_EQ(error(), "");
  content["metadata"] = {{"shop", "x"}};
  EXPECT_EQ(error(), "");
  content["metadata"] = json::array();
  EXPECT_EQ(error(), "m: metadata: is no object");
}

TEST_F(ManifestText, Faults) {
  const json whole = content;
  const std::vector<std::tuple<const char*, json, const char*>> cases = {
      {"/schema_version", 2, "schema_version: is not 1, the version"},
      {"/rank", 65537, "rank: must be an integer from 1 to 65536"},
      {"/rank", 4.0, "rank: must be an integer"},
      {"/heads", 4097, "heads: must be an integer from 1 to 4096"},
      {"/modules/0/heads", 9, "modules.0.heads: must be an integer from 1 to 3"},
      {"/tasks/0/route/0", 9, "tasks.0.route.0"},
      {"/tasks/0/route", json::array({0}), "must have an entry for each module"},
      {"/tasks/0/prompt_template", "no hole", "exactly once"},
      {"/tasks/0/prompt_template", "{input}{input}", "exactly once"},
      {"/tasks/0/prompt_template", "{input}" + std::string(1 << 20, 'x'), "is longer than"},
      {"/tasks/0/name", "", "is empty"},
      {"/tasks/0/name", std::string(201, 'x'), "is longer than 200 bytes"},
      {"/tasks/0/stop", json::array({""}), "tasks.0.stop.0: is empty"},
      {"/tasks/0/stop", json::array({5}), "tasks.0.stop.0: is no text"},
      {"/tasks/0/generation/max_new_tokens", 0, "max_new_tokens: must be"},
      {"/tasks/0/generation/temperature", 100.5, "temperature: must be from 0 to 100"},
      {"/tasks/0/generation/top_p", 0, "top_p: must be above 0"},
      {"/files/0/name", "../adapters.pte", "plain file name"},
      {"/files/0/name", "manifest.json", "plain file name"},
      {"/files/0/name", "other.pte", "do not name adapters.pte"},
      {"/files/0/bytes", int64_t{1} << 40, "files.0.bytes"},
      {"/files/0/sha256", "abc", "SHA-256"},
      {"/base_model/id", std::string(1001, 'x'), "is longer than 1000 bytes"},
      {"/fallback", "nobody", "fallback: is neither"},
  };
  for (const auto& [pointer, value, words] : cases) {
    content = whole;
    content[json::json_pointer(pointer)] = value;
    EXPECT_NE(error().find(words), std::string::npos) << pointer << ": " << error();
  }
  for (const char* other : {"", "null", "[]", "{", "{}", "\xff\xfe", "[[[[[[[[[["}) {
    EXPECT_FALSE(parse_manifest(other, "m", false).ok()) << other;
  }
  content = whole;
  content["tasks"][1]["name"] = content["tasks"][0]["name"];
  EXPECT_NE(error().find("stands twice"), std::string::npos);
  content = whole;
  content["files"].push_back(content["files"][0]);
  EXPECT_NE(error().find("each once"), std::string::npos);
}

TEST_F(ManifestText, Fallbacks) {
  auto read = parse_manifest(text, "m", true);
  ASSERT_TRUE(read.ok());
  ASSERT_FALSE(read.value().find("nobody").ok());
  EXPECT_EQ(read.value().find("nobody").error().code, Code::NotFound);
  content["fallback"] = content["tasks"][1]["name"];
  read = parse_manifest(content.dump(), "m", false);
  EXPECT_EQ(read.value().find("nobody").value(), &read.value().tasks[1]);
  // These two words mean what they say, even where a task has the name.
  content["tasks"][0]["name"] = "base";
  content["tasks"][1]["name"] = "error";
  content["fallback"] = "base";
  read = parse_manifest(content.dump(), "m", false);
  EXPECT_EQ(read.value().find("nobody").value(), nullptr);
  EXPECT_EQ(read.value().find("base").value(), &read.value().tasks[0]);
  content["fallback"] = "error";
  read = parse_manifest(content.dump(), "m", false);
  EXPECT_FALSE(read.value().find("nobody").ok());
  EXPECT_EQ(read.value().find("error").value(), &read.value().tasks[1]);
}
