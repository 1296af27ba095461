// A line of input as a request.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli.h"

// A request, or why the line is none.
struct Request {
  std::optional<int64_t> id;
  std::vector<int64_t> ids;
  std::optional<std::string> task;
  hydrapack::GenerateOptions options;
  hydrapack::Error error;
  std::atomic<bool> stopped{false};
};

// Whether the value is an integer of 64 bits, which out then is.
bool integer(const Json& value, int64_t& out);

// What a line asks for; without a task, that of the command line.
std::shared_ptr<Request> read_request(const Json& line, const std::optional<std::string>& task);
