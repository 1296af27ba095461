// A folder written beside its target and then put in its place in one step.
#include <hydrapack/patch.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include "files.h"
#include "patch.h"

namespace hydrapack {
namespace {

// Closes, and so unlocks, what it holds.
class Handle {
 public:
  Handle(const std::string& path, int flags) : held_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (held_ >= 0) ::close(held_);
  }
  int get() const { return held_; }
  bool ok() const { return held_ >= 0; }

 private:
  int held_;
};

Error not_written(const std::string& path) {
  return {Code::Io, path + ": cannot be written: " + std::strerror(errno)};
}

// A package's folder: files, no folders in it. What is not there is removed.
bool removed(const std::string& folder) {
  if (DIR* listed = ::opendir(folder.c_str())) {
    while (const dirent* entry = ::readdir(listed)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") ::unlink((folder + "/" + name).c_str());
    }
    ::closedir(listed);
  }
  return ::rmdir(folder.c_str()) == 0 || errno == ENOENT;
}

bool written(const std::string& path, const std::string& content) {
  const Handle file(path, O_WRONLY | O_CREAT | O_EXCL);
  if (!file.ok()) return false;
  for (size_t at = 0; at < content.size();) {
    const ssize_t count = ::write(file.get(), content.data() + at, content.size() - at);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return false;
    at += static_cast<size_t>(count);
  }
  return ::fsync(file.get()) == 0;
}

// Both names stay at any instant. False where the system or the file system cannot.
bool exchanged(const std::string& one, const std::string& other) {
#if defined(__linux__)
  constexpr unsigned kExchange = 2;  // RENAME_EXCHANGE of linux/fs.h
  return ::syscall(SYS_renameat2, AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), kExchange) == 0;
#elif defined(__APPLE__)
  return ::renamex_np(one.c_str(), other.c_str(), RENAME_SWAP) == 0;
#else
  errno = ENOSYS;
  return false;
#endif
}

}  // namespace

Error apply_patch(
    const std::string& package,
    const std::string& patch,
    const std::string& target,
    const std::string& public_key) {
  const auto made = patched_files(package, patch, public_key);
  if (!made.ok()) return made.error();
  std::string place = target;
  while (place.size() > 1 && place.back() == '/') place.pop_back();
  // A link stays one; what it points to is replaced.
  if (char* whole = ::realpath(place.c_str(), nullptr)) {
    place = whole;
    std::free(whole);
  }
  const size_t slash = place.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : place.substr(0, slash + 1);
  const std::string partial = parent + "/." + place.substr(slash + 1) + ".hydrapack-update";
  const Handle lock(parent, O_RDONLY | O_DIRECTORY);
  if (!lock.ok()) return not_written(parent);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return {Code::Busy, parent + ": another update runs there"};
    return not_written(parent);
  }
  // What a run that was killed left.
  if (!removed(partial) || ::mkdir(partial.c_str(), 0777) != 0) return not_written(partial);
  Error error;
  for (const PatchedFile& file : made.value()) {
    const std::string path = partial + "/" + file.name;
    if (error.ok() && !written(path, file.content)) error = not_written(path);
  }
  if (error.ok() && !on_disk(partial)) error = not_written(partial);
  struct stat info {};
  const bool there = ::stat(place.c_str(), &info) == 0;
  if (error.ok() && there && !S_ISDIR(info.st_mode)) {
    error = {Code::Invalid, target + ": is a file, a folder is to be written there"};
  }
  if (error.ok()) {
    const bool put =
        there ? exchanged(partial, place) : std::rename(partial.c_str(), place.c_str()) == 0;
    if (!put) error = not_written(target);
  }
  if (error.ok() && !on_disk(parent)) error = not_written(parent);
  // The old package, or the new one that could not be put there.
  removed(partial);
  return error;
}

}  // namespace hydrapack
