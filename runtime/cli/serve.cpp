// JSON lines: a thread reads them, so that an answer can be stopped while it is made.
#include <thread>

#include "queue.h"

using hydrapack::Error;
using hydrapack::Result;

namespace {

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
      line = error_json(made.error());
    }
    if (request->id) line["id"] = *request->id;
    print(line);
  }
  reader.join();
  return 0;
}
