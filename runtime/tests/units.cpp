// SHA-256, the sampler and the manifest reader.
#include <gtest/gtest.h>

#include <map>

#include "fixtures.h"
#include "manifest.h"
#include "sampler.h"
#include "sha256.h"

using namespace hydrapack;
using nlohmann::json;

namespace {

std::string sha256(const std::string& text, size_t piece) {
  Sha256 digest;
  for (size_t i = 0; i < text.size(); i += piece) {
    digest.update(text.data() + i, std::min(piece, text.size() - i));
  }
  return digest.hex();
}

}  // namespace

TEST(Sha256, PublishedVectors) {
  // FIPS 180-2, appendix B, and the empty message.
  EXPECT_EQ(Sha256().hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc", 64), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  EXPECT_EQ(sha256(two, 64), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  for (size_t piece : {1, 7, 63, 64, 65, 1000}) {
    EXPECT_EQ(
        sha256(std::string(1000000, 'a'), piece),
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST(Sampler, GreedyTakesTheFirstOfEquals) {
  Sampler sampler;
  const float logits[] = {1, 3, 3, 2};
  EXPECT_EQ(sampler.pick(logits, 4, {}), 1);
}

TEST(Sampler, SeedsAndLimits) {
  const float logits[] = {0, 1, 2, 3, -50};
  const auto draw = [&](Sampling s) {
    Sampler sampler;
    sampler.seed(s.seed);
    std::map<int64_t, int> counts;
    for (int i = 0; i < 4000; i++) counts[sampler.pick(logits, 5, s)]++;
    return counts;
  };
  const auto free = draw({1.0f, 0, 1.0f, 7});
  EXPECT_EQ(free, draw({1.0f, 0, 1.0f, 7}));
  EXPECT_NE(free, draw({1.0f, 0, 1.0f, 8}));
  EXPECT_EQ(free.count(4), 0u);
  // softmax of 3 among 0..3 is 0.644.
  EXPECT_NEAR(free.at(3) / 4000.0, 0.644, 0.03);
  EXPECT_EQ(draw({1.0f, 2, 1.0f, 1}).size(), 2u);
  EXPECT_EQ(draw({1.0f, 0, 0.6f, 1}).size(), 1u);
  EXPECT_EQ(draw({1.0f, 0, 0.8f, 1}).size(), 2u);
  EXPECT_EQ(draw({1.0f, 99, 1.0f, 1}).size(), 4u);
}

TEST(Sampler, RefusesOptions) {
  Sampler sampler;
  EXPECT_FALSE(sampler.check({-1.0f, 0, 1.0f, 0}).ok());
  EXPECT_FALSE(sampler.check({NAN, 0, 1.0f, 0}).ok());
  EXPECT_FALSE(sampler.check({1.0f, -1, 1.0f, 0}).ok());
  EXPECT_FALSE(sampler.check({1.0f, 0, 0.0f, 0}).ok());
  EXPECT_FALSE(sampler.check({1.0f, 0, 1.5f, 0}).ok());
  EXPECT_TRUE(sampler.check({1.0f, 5, 0.5f, 0}).ok());
}

class ManifestText : public ::testing::Test {
 protected:
  void SetUp() override {
    NEED_FIXTURES();
    text = read_file(fixtures() + "/package/manifest.json");
    content = json::parse(text);
  }

  // The error of the changed manifest, read without its digest; empty if it is read.
  std::string error() const {
    const auto read = parse_manifest(content.dump(), "m", false);
    return read.ok() ? "" : read.error().message;
  }

  std::string text;
  json content;
};

TEST_F(ManifestText, IsRead) {
  const auto read = parse_manifest(text, "m", true);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read.value().tasks.size(), content["tasks"].size());
  EXPECT_EQ(read.value().rank, content["rank"].get<int64_t>());
  EXPECT_EQ(read.value().tasks[1].route, content["tasks"][1]["route"].get<std::vector<int64_t>>());
  EXPECT_EQ(error(), "");
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

TEST_F(ManifestText, EveryKeyIsNeededAndTyped) {
  const json whole = content;
  const std::vector<json> wrong = {json(), json(-1), json(1e300), json("x"), json::array(),
                                   json::object(), json(1ull << 63)};
  const json flat = whole.flatten();
  size_t refused = 0;
  for (const auto& item : flat.items()) {
    const json::json_pointer pointer(item.key());
    for (const json& value : wrong) {
      content = whole;
      content[pointer] = value;
      // Some values fit (a text is a text): what counts is that the reader survives all.
      refused += error().empty() ? 0 : 1;
    }
  }
  EXPECT_GT(refused, flat.size() * wrong.size() / 2);
  for (const auto& item : whole.items()) {
    content = whole;
    content.erase(item.key());
    EXPECT_NE(error().find(item.key() + ": is missing"), std::string::npos) << error();
    content = whole;
    content[item.key()] = nullptr;
    EXPECT_NE(error(), "") << item.key();
  }
}

TEST_F(ManifestText, Faults) {
  const json whole = content;
  const std::vector<std::tuple<const char*, json, const char*>> cases = {
      {"/schema_version", 2, "schema_version"},
      {"/more", 1, "more: is not known"},
      {"/tasks/0/more", 1, "tasks.0.more: is not known"},
      {"/rank", -1, "rank"},
      {"/rank", 4.5, "rank"},
      {"/rank", 1ull << 63, "rank"},
      {"/heads", 1 << 20, "heads"},
      {"/heads", "2", "heads"},
      {"/tasks/0/route/0", 9, "route"},
      {"/tasks/0/route/0", -1, "route"},
      {"/tasks/0/route", json::array(), "route"},
      {"/tasks/0/prompt_template", "no hole", "exactly once"},
      {"/tasks/0/name", "", "is empty"},
      {"/tasks", json::array(), "tasks"},
      {"/files/0/name", "../adapters.pte", "plain file name"},
      {"/files/0/bytes", -5, "bytes"},
      {"/files/0/sha256", "abc", "SHA-256"},
      {"/fallback", "nobody", "fallback"},
      {"/modules/0/bits_a", 5, "must be 4, 8, 16 or 32"},
      {"/layout_digest", 5, "layout_digest"},
  };
  for (const auto& [pointer, value, words] : cases) {
    content = whole;
    content[json::json_pointer(pointer)] = value;
    EXPECT_NE(error().find(words), std::string::npos) << pointer << ": " << error();
  }
  for (const char* text : {"", "null", "[]", "{", "{}", "\xff\xfe", "[[[[[[[[[["}) {
    EXPECT_FALSE(parse_manifest(text, "m", false).ok()) << text;
  }
  EXPECT_FALSE(parse_manifest(std::string(1 << 20, '['), "m", false).ok());
  content = whole;
  content["tasks"][1]["name"] = content["tasks"][0]["name"];
  EXPECT_NE(error().find("stands twice"), std::string::npos);
}

TEST_F(ManifestText, Fallbacks) {
  auto read = parse_manifest(text, "m", true);
  ASSERT_TRUE(read.ok());
  EXPECT_FALSE(read.value().find("nobody").ok());
  content["fallback"] = "base";
  read = parse_manifest(content.dump(), "m", false);
  EXPECT_EQ(read.value().find("nobody").value(), nullptr);
  content["fallback"] = content["tasks"][1]["name"];
  read = parse_manifest(content.dump(), "m", false);
  EXPECT_EQ(read.value().find("nobody").value(), &read.value().tasks[1]);
}
