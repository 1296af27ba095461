// JSON lines: a thread reads them, so that an answer can be stopped while it is made.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <iostream>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

#include "cli.h"

using hydrapack::Code;
using hydrapack::Error;
using hydrapack::Result;

namespace {

// A line of input: a request, or why it is none.
struct Request {
  std::optional<int64_t> id;
  std::vector<int64_t> ids;
  std::optional<std::string> task;
  hydrapack::GenerateOptions options;
  Error error;
  std::atomic<bool> stopped{false};
};

bool integer(const Json& value, int64_t& out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return false;
  }
  out = value.get<int64_t>();
  return true;
}

bool integers(const Json& value, std::vector<int64_t>& out) {
  if (!value.is_array()) return false;
  out.resize(value.size());
  for (size_t i = 0; i < value.size(); i++) {
    if (!integer(value[i], out[i])) return false;
  }
  return true;
}

// What is wrong with a key of a request, or an empty text.
std::string read_key(const std::string& key, const Json& value, Request& request) {
  hydrapack::GenerateOptions& options = request.options;
  int64_t whole = 0;
  if (key == "id") {
    if (!integer(value, whole)) return "give an integer";
    request.id = whole;
  } else if (key == "ids") {
    if (!integers(value, request.ids)) return "give a list of integers";
  } else if (key == "stop_ids") {
    if (!integers(value, options.stop_ids.emplace())) return "give a list of integers";
  } else if (key == "task") {
    if (!value.is_null() && !value.is_string()) return "give a name or null";
    request.task =
        value.is_null() ? std::nullopt : std::optional<std::string>(value.get<std::string>());
  } else if (key == "max_new_tokens") {
    if (!integer(value, options.max_new_tokens.emplace())) return "give an integer";
  } else if (key == "top_k") {
    if (!integer(value, options.top_k.emplace())) return "give an integer";
  } else if (key == "temperature") {
    if (!value.is_number()) return "give a number";
    options.temperature = value.get<float>();
  } else if (key == "top_p") {
    if (!value.is_number()) return "give a number";
    options.top_p = value.get<float>();
  } else if (key == "lookup") {
    if (!value.is_boolean()) return "give true or false";
    options.lookup = value.get<bool>();
  } else if (key == "seed") {
    if (!value.is_number_unsigned()) return "give an integer from 0 to 2^64 - 1";
    options.seed = value.get<uint64_t>();
  } else {
    return "no such key; hydrapack-run --help lists them";
  }
  return "";
}

void read_request(const Json& line, Request& request) {
  if (!line.is_object()) {
    request.error = {Code::Invalid, "the line is no JSON object"};
    return;
  }
  for (const auto& item : line.items()) {
    const std::string wrong = read_key(item.key(), item.value(), request);
    if (!wrong.empty() && request.error.ok()) {
      request.error = {Code::Invalid, item.key() + ": " + wrong};
    }
  }
  if (request.error.ok() && !line.contains("ids")) {
    request.error = {Code::Invalid, "ids: missing; give a list of integers"};
  }
}

// Requests in the order of their lines, between the reader and the thread that answers.
class Queue {
 public:
  explicit Queue(hydrapack::Session& session) : session_(session) {}

  // Reads standard input to its end.
  void read(const std::optional<std::string>& task) {
    std::string text;
    while (std::getline(std::cin, text)) {
      if (text.empty()) continue;
      const Json line = Json::parse(text, nullptr, false);
      auto request = std::make_shared<Request>();
      int64_t id = 0;
      if (line.is_object() && line.contains("stop")) {
        if (line.size() == 1 && integer(line["stop"], id)) {
          stop(id);
          continue;
        }
        request->error = {Code::Invalid, "stop: give an id, and no other key"};
      } else {
        request->task = task;
        read_request(line, *request);
      }
      add(std::move(request));
    }
    add(nullptr);
  }

  // The next one, from now on the running one; null after the last.
  std::shared_ptr<Request> next() {
    std::unique_lock<std::mutex> lock(mutex_);
    running_ = nullptr;
    changed_.wait(lock, [&] { return !waiting_.empty(); });
    running_ = std::move(waiting_.front());
    waiting_.pop_front();
    return running_;
  }

 private:
  void add(std::shared_ptr<Request> request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back(std::move(request));
    changed_.notify_one();
  }

  void stop(int64_t id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& request : waiting_) {
      if (request && request->id == id) request->stopped = true;
    }
    if (running_ && running_->id == id) {
      running_->stopped = true;
      session_.stop();
    }
  }

  hydrapack::Session& session_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Request>> waiting_;
  std::shared_ptr<Request> running_;
};

Result<hydrapack::Generated> answer(hydrapack::Session& session, const Request& request) {
  if (!request.error.ok()) return request.error;
  if (request.stopped) return hydrapack::Generated{{}, hydrapack::Finish::Stopped, ""};
  const Error used = session.use(request.task);
  if (!used.ok()) return used;
  return session.generate(request.ids, request.options, [&](int64_t token) {
    Json line = {{"token", token}};
    if (request.id) line["id"] = *request.id;
    print(line);
    return !request.stopped;  // it may have come before the session had begun
  });
}

Json stats_json(const hydrapack::Stats& s) {
  return {
      {"load_ms", s.load_ms},
      {"swap_ms", s.swap_ms},
      {"prefill_ms", s.prefill_ms},
      {"prefill_tokens", s.prefill_tokens},
      {"decode_ms", s.decode_ms},
      {"decode_tokens", s.decode_tokens},
      {"decode_calls", s.decode_calls},
      {"model_bytes", s.model_bytes},
      {"adapter_bytes", s.adapter_bytes},
      {"resident_bytes", s.resident_bytes}};
}

}  // namespace

int serve(hydrapack::Session& session, const std::optional<std::string>& task) {
  // Through stdio a read would wait for the lock of standard output, which a client that does not
  // read holds up.
  std::ios::sync_with_stdio(false);
  std::cin.tie(nullptr);
  Queue queue(session);
  std::thread reader([&] { queue.read(task); });
  while (const auto request = queue.next()) {
    const auto made = answer(session, *request);
    Json line;
    if (made.ok()) {
      line = {
          {"finish", name(made.value().finish)},
          {"ids", made.value().ids},
          {"stats", stats_json(session.stats())}};
    } else {
      line = {{"error", made.error().message}, {"kind", name(made.error().code)}};
    }
    if (request->id) line["id"] = *request->id;
    print(line);
  }
  reader.join();
  return 0;
}
