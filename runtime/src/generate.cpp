// One answer: its options, and the loop to where it ends.
#include <algorithm>

#include "state.h"

namespace hydrapack {
namespace {

// Finds stop strings in a text that grows; they may span tokens.
class StopStrings {
 public:
  explicit StopStrings(const std::vector<std::string>& strings) : strings_(strings) {
    for (const std::string& s : strings) longest_ = std::max(longest_, s.size());
  }

  // Adds to the text. If a stop string is then in it, cuts it before the first one.
  bool add(std::string& text, const std::string& more) const {
    // The end of the text may begin a string.
    const size_t from = text.size() < longest_ ? 0 : text.size() - longest_ + 1;
    text += more;
    size_t first = std::string::npos;
    for (const std::string& s : strings_) first = std::min(first, text.find(s, from));
    if (first == std::string::npos) return false;
    text.resize(first);
    return true;
  }

 private:
  const std::vector<std::string>& strings_;
  size_t longest_ = 0;
};

}  // namespace

Result<Plan> Session::State::plan(const GenerateOptions& options) const {
  const ManifestTask* used = task;
  static const Task bare;
  const Task& own = used != nullptr ? used->shown : bare;
  Plan plan;
  plan.max_new_tokens = options.max_new_tokens.value_or(own.max_new_tokens);
  plan.sampling.temperature = options.temperature.value_or(own.sampling.temperature);
  plan.sampling.top_k = options.top_k.value_or(own.sampling.top_k);
  plan.sampling.top_p = options.top_p.value_or(own.sampling.top_p);
  plan.seed = options.seed;
  plan.lookup = options.lookup;
  if (plan.max_new_tokens < 1 || plan.max_new_tokens > kMaxTokens) {
    return Error{Code::Invalid, "max_new_tokens must be from 1 to " + std::to_string(kMaxTokens)};
  }
  const Error error = Sampler::check(plan.sampling);
  if (!error.ok()) return error;
  plan.ends = engine->eos_ids;
  if (options.stop_ids) {
    plan.ends.insert(plan.ends.end(), options.stop_ids->begin(), options.stop_ids->end());
  }
  if (options.token_text) {
    plan.token_text = options.token_text;
    plan.stop = own.stop;
  } else if (!own.stop.empty() && !options.stop_ids) {
    return Error{
        Code::Invalid,
        "task '" + own.name + "' has stop strings: give token_text, or stop_ids (an empty list, if "
            "you look for the strings yourself)"};
  }
  return plan;
}

Result<Generated> Session::State::generate(
    const std::vector<int64_t>& ids,
    const Plan& plan,
    const std::function<bool(int64_t)>& callback) {
  // What is refused leaves the text that is there.
  Error error = check_ids(ids.data(), static_cast<int64_t>(ids.size()), 0);
  if (error.ok() && !ids.empty()) reset();
  if (error.ok()) error = prefill(ids);
  if (!error.ok()) return error;
  sampler.seed(plan.seed);
  if (plan.lookup) lookup.emplace(ids);
  const StopStrings stop(plan.stop);
  const auto given = [&] { return answer == Answer::ToStop; };
  Generated made;
  while (true) {
    if (given()) {
      made.finish = Finish::Stopped;
      return made;
    }
    if (pending && position >= engine->limits.context) {
      made.finish = Finish::Context;
      return made;
    }
    const auto left = plan.max_new_tokens - static_cast<int64_t>(made.ids.size());
    const auto token = step(plan.sampling, left - 1);
    if (!token.ok()) return token.error();
    if (std::find(plan.ends.begin(), plan.ends.end(), token.value()) != plan.ends.end()) {
      made.finish = Finish::Stop;
      return made;
    }
    made.ids.push_back(token.value());
    const bool found = plan.token_text && stop.add(made.text, plan.token_text(token.value()));
    const bool on = !callback || callback(token.value());
    if (found) {
      made.finish = Finish::Stop;
      return made;
    }
    if (!on || given()) {
      made.finish = Finish::Stopped;
      return made;
    }
    if (static_cast<int64_t>(made.ids.size()) >= plan.max_new_tokens) {
      made.finish = Finish::Length;
      return made;
    }
  }
}

}  // namespace hydrapack
