// The parts of hydrapack-run.
#pragma once

#include <optional>
#include <string>

#include <hydrapack/session.h>
#include <nlohmann/json.hpp>

using Json = nlohmann::json;

// What the command line asks for.
struct Arguments {
  std::string model, package;
  std::string patch, target;  // of --apply, which takes no model
  hydrapack::OpenOptions open;
  std::optional<std::string> task;  // of lines that name none
  bool help = false;
  bool bench = false;
  bool self_test = false;
  bool last_good = false;
  std::string activate;  // the folder of packages to switch
  long swaps = 0;
};

const char* help_text();
hydrapack::Result<Arguments> read_arguments(int count, char** given);

// To standard error; the exit code.
int fail(const std::string& message);

// One line to standard output. A message may quote bytes that are no UTF-8: they are replaced.
void print(const Json& json);

Json error_json(const hydrapack::Error& error);
Json stats_json(const hydrapack::Stats& stats);
Json self_test_json(const hydrapack::SelfTest& test);

// 64 hex digits as they are, else the key of a PEM file (SubjectPublicKeyInfo).
hydrapack::Result<std::string> public_key_of(const std::string& argument);

// Answer the requests of standard input until it ends.
int serve(hydrapack::Session& session, const std::optional<std::string>& task);

// --bench and --swaps.
int bench(hydrapack::Session& session, const std::optional<std::string>& task, bool digests);
int swap_often(hydrapack::Session& session, long count);
