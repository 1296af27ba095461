// Results, SHA-256 and the sampler.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <random>

#include <hydrapack/result.h>

#include "sampler.h"
#include "sha256.h"

using namespace hydrapack;

namespace {

std::string sha256(const std::string& text, size_t piece, Sha256Blocks blocks) {
  Sha256 digest(blocks);
  for (size_t i = 0; i < text.size(); i += piece) {
    digest.update(text.data() + i, std::min(piece, text.size() - i));
  }
  return digest.hex();
}

std::vector<int64_t> draws(const std::vector<float>& logits, Sampling s, uint64_t seed, int count) {
  Sampler sampler;
  sampler.seed(seed);
  std::vector<int64_t> ids;
  for (int i = 0; i < count; i++) {
    const auto token = sampler.pick(logits.data(), static_cast<int64_t>(logits.size()), s);
    EXPECT_TRUE(token.ok());
    ids.push_back(token.value());
  }
  return ids;
}

std::map<int64_t, int> counts(const std::vector<float>& logits, Sampling s) {
  std::map<int64_t, int> found;
  for (const int64_t id : draws(logits, s, 7, 4000)) found[id]++;
  return found;
}

// The rules of the contract, written as plainly as they are said: everything sorted.
int64_t plainly(const std::vector<float>& logits, Sampling s, double u) {
  std::vector<int64_t> order(logits.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
    return logits[x] > logits[y];
  });
  if (s.top_k > 0 && s.top_k < static_cast<int64_t>(order.size())) order.resize(s.top_k);
  const double largest = logits[order[0]];
  const auto weight = [&](int64_t id) {
    return std::exp((double{logits[id]} - largest) / s.temperature);
  };
  const auto total = [&] {
    std::vector<int64_t> ids = order;
    std::sort(ids.begin(), ids.end());
    double sum = 0;
    for (const int64_t id : ids) sum += weight(id);
    return sum;
  };
  if (s.top_p < 1) {
    const double wanted = s.top_p * total();
    double sum = 0;
    size_t kept = 0;
    while (kept < order.size() && (kept == 0 || sum < wanted)) sum += weight(order[kept++]);
    order.resize(kept);
  }
  const double drawn = u * total();
  std::sort(order.begin(), order.end());
  double sum = 0;
  for (const int64_t id : order) {
    sum += weight(id);
    if (drawn < sum) return id;
  }
  return order.back();
}

}  // namespace

TEST(ResultDeathTest, MisuseIsSaidAndEndsTheProgram) {
  Result<int> failed = Error{Code::Io, "disk: on fire"};
  EXPECT_DEATH((void)failed.value(), "hydrapack: value\\(\\) of an error: disk: on fire");
  const Result<int>& constant = failed;
  EXPECT_DEATH((void)constant.value(), "disk: on fire");
  Result<int> fine = 5;
  EXPECT_DEATH((void)fine.error(), "error\\(\\) of a Result that holds a value");
  EXPECT_EQ(fine.value(), 5);
  EXPECT_EQ(failed.error().code, Code::Io);
}

TEST(Result, Names) {
  const std::vector<const char*> codes = {
      "Ok", "NotFound", "Invalid", "Mismatch", "ContextFull", "Busy", "Io", "Runtime"};
  for (size_t i = 0; i < codes.size(); i++) EXPECT_STREQ(name(static_cast<Code>(i)), codes[i]);
  EXPECT_STREQ(name(Finish::Stop), "stop");
  EXPECT_STREQ(name(Finish::Length), "length");
  EXPECT_STREQ(name(Finish::Context), "context");
  EXPECT_STREQ(name(Finish::Stopped), "stopped");
}

TEST(Sha256, PublishedVectors) {
  // FIPS 180-2, appendix B, and the empty message.
  const std::string two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  for (const Sha256Way& way : sha256_ways()) {
    SCOPED_TRACE(way.name);
    EXPECT_EQ(
        sha256("", 1, way.blocks),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(
        sha256("abc", 64, way.blocks),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(
        sha256(two, 64, way.blocks),
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    for (size_t piece : {1, 7, 63, 64, 65, 1000}) {
      EXPECT_EQ(
          sha256(std::string(1000000, 'a'), piece, way.blocks),
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
  }
}

TEST(Sha256, EveryWayGivesThePortableDigest) {
  ASSERT_STREQ(sha256_ways().back().name, "portable");
  std::mt19937 random(3);
  for (int i = 0; i < 300; i++) {
    std::string text(random() % 5000, '\0');
    for (char& c : text) c = static_cast<char>(random());
    const size_t piece = 1 + random() % 300;
    const std::string want = sha256(text, text.size() + 1, sha256_ways().back().blocks);
    for (const Sha256Way& way : sha256_ways()) {
      EXPECT_EQ(sha256(text, piece, way.blocks), want) << way.name << " " << text.size();
    }
  }
}

TEST(Sha256, TheProcessorsInstructionsAreUsed) {
#if defined(__x86_64__)
  std::ifstream file("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.empty()) GTEST_SKIP() << "no /proc/cpuinfo to ask";
  const bool can = text.find(" sha_ni") != std::string::npos;
  EXPECT_STREQ(sha256_ways().front().name, can ? "x86" : "portable");
  EXPECT_EQ(sha256_ways().size(), can ? 2u : 1u);
#endif
}

TEST(Sampler, GreedyTakesTheFirstOfEquals) {
  EXPECT_EQ(draws({1, 3, 3, 2}, {}, 0, 1)[0], 1);
}

TEST(Sampler, DrawsOfSplitMix64) {
  // Two equal tokens show the top bit: the generator's published values for seed 0 are
  // e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f, f88bb8a8724c81ec, 1b39896a51a8749b.
  EXPECT_EQ(draws({0, 0}, {1, 0, 1}, 0, 5), (std::vector<int64_t>{1, 0, 0, 1, 0}));
  // 16 equal tokens, the top four bits.
  EXPECT_EQ(
      draws(std::vector<float>(16, 2.5f), {1, 0, 1}, 0, 5),
      (std::vector<int64_t>{0xe, 0x6, 0x0, 0xf, 0x1}));
}

TEST(Sampler, SeedsAndLimits) {
  const std::vector<float> logits = {0, 1, 2, 3, -50};
  const auto free = counts(logits, {1.0f, 0, 1.0f});
  EXPECT_EQ(draws(logits, {1.0f, 0, 1.0f}, 7, 50), draws(logits, {1.0f, 0, 1.0f}, 7, 50));
  EXPECT_NE(draws(logits, {1.0f, 0, 1.0f}, 7, 50), draws(logits, {1.0f, 0, 1.0f}, 8, 50));
  EXPECT_EQ(free.count(4), 0u);
  // softmax of 3 among 0..3 is 0.644.
  EXPECT_NEAR(free.at(3) / 4000.0, 0.644, 0.03);
  EXPECT_EQ(counts(logits, {1.0f, 2, 1.0f}).size(), 2u);
  EXPECT_EQ(counts(logits, {1.0f, 0, 0.6f}).size(), 1u);
  EXPECT_EQ(counts(logits, {1.0f, 0, 0.8f}).size(), 2u);
  EXPECT_EQ(counts(logits, {1.0f, 99, 1.0f}).size(), 4u);
  // Of equals the lower ids: 2 of 3, and the smallest set that reaches half of four.
  EXPECT_EQ(counts({1, 5, 5, 5}, {1.0f, 2, 1.0f}).count(3), 0u);
  EXPECT_EQ(counts({0, 0, 0, 0}, {1.0f, 0, 0.5f}).size(), 2u);
  EXPECT_EQ(counts({0, 0, 0, 0}, {1.0f, 0, 0.5f}).count(2), 0u);
}

TEST(Sampler, CutsAndSelectionsChangeNothing) {
  std::mt19937 random(5);
  for (int i = 0; i < 400; i++) {
    std::vector<float> logits(1 + random() % 300);
    // Coarse values give ties.
    for (float& value : logits) value = static_cast<float>(random() % 40) / (1 + random() % 8);
    const Sampling s{
        0.05f + static_cast<float>(random() % 300) / 100, static_cast<int64_t>(random() % 400),
        1 - static_cast<float>(random() % 100) / 100};
    const uint64_t seed = random();
    uint64_t state = seed + 0x9E3779B97F4A7C15;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB;
    const double u = static_cast<double>((state ^ (state >> 31)) >> 11) * 0x1p-53;
    EXPECT_EQ(draws(logits, s, seed, 1)[0], plainly(logits, s, u)) << i;
  }
}

TEST(Sampler, ALogitThatIsNotFiniteIsRefused) {
  // With top_p this once ran past the end of the candidates.
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const Sampling& s : {Sampling{}, Sampling{1, 0, 1}, Sampling{1, 3, 1}, Sampling{1, 0, 0.5f}}) {
      std::vector<float> logits(1000, 0.0f);
      logits[3] = bad;
      Sampler sampler;
      const auto token = sampler.pick(logits.data(), 1000, s);
      ASSERT_FALSE(token.ok());
      EXPECT_EQ(token.error().code, Code::Invalid);
      EXPECT_EQ(token.error().message, "the logit of token 3 is not finite");
    }
  }
}

TEST(Sampler, ExtremeOptionsStillPickOne) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(draws({1, 2, 3}, {tiny, 0, 1}, 1, 1)[0], 2);
  EXPECT_EQ(draws({1, 2, 3}, {1, 0, tiny}, 1, 1)[0], 2);
  EXPECT_EQ(draws({-3e38f, 3e38f}, {0.001f, 0, 0.9f}, 1, 1)[0], 1);
}

TEST(Sampler, RefusesOptions) {
  for (const Sampling& s :
       {Sampling{-1.0f, 0, 1.0f}, Sampling{NAN, 0, 1.0f}, Sampling{100.5f, 0, 1.0f},
        Sampling{1.0f, -1, 1.0f}, Sampling{1.0f, (1 << 20) + 1, 1.0f}, Sampling{1.0f, 0, 0.0f},
        Sampling{1.0f, 0, 1.5f}, Sampling{1.0f, 0, NAN}}) {
    EXPECT_EQ(Sampler::check(s).code, Code::Invalid);
  }
  EXPECT_TRUE(Sampler::check({100.0f, 1 << 20, 0.5f}).ok());
}
