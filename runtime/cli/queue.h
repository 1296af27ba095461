// Requests between the thread that reads them and the one that answers.
#pragma once

#include <condition_variable>
#include <deque>
#include <iostream>
#include <mutex>

#include "request.h"

// In the order of their lines; a line that stops one is read at once.
class Queue {
 public:
  explicit Queue(hydrapack::Session& session) : session_(session) {}

  // Reads standard input to its end.
  void read(const std::optional<std::string>& task) {
    std::string text;
    while (std::getline(std::cin, text)) {
      if (text.empty()) continue;
      const Json line = Json::parse(text, nullptr, false);
      int64_t id = 0;
      if (!line.is_object() || !line.contains("stop")) {
        add(read_request(line, task));
      } else if (line.size() == 1 && integer(line["stop"], id)) {
        stop(id);
      } else {
        auto request = std::make_shared<Request>();
        request->error = {hydrapack::Code::Invalid, "stop: give an id, and no other key"};
        add(std::move(request));
      }
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
