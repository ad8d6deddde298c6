// SPDX-License-Identifier: Apache-2.0
#include "hub/transfer.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/log.h"
#include "hub/partial_file.h"
#include "hub/transfer_progress.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr size_t kConnections = 8;
constexpr int kWrongDigests = 2;  ///< after which a file is given up

/// A file on its way. What is neither const nor atomic is guarded by Transfer's mutex, but for the bytes: those of a
/// piece are its thread's, and those of the whole file the last thread's.
struct Job {
  explicit Job(const WantedFile& wanted) : file(wanted), partial(wanted.target, wanted.size) {}

  const WantedFile& file;
  PartialFile partial;
  size_t pieces_left = 0;
  size_t threads = 0;  ///< that are at its pieces
  int wrong_digests = 0;
  std::atomic<bool> is_whole = false;  ///< the server ignores ranges: one thread fetches the file at one go
};

struct Piece {
  Job* job;
  size_t index;
};

enum class Outcome { kDone, kEnded, kRangeIgnored };

/// The first and the whole of "bytes 0-9/100"; -1 where it is not readable.
std::pair<int64_t, int64_t> read_content_range(const std::string& text) {
  long long first = -1;
  long long last = -1;
  long long size = -1;
  if (std::sscanf(text.c_str(), "bytes %lld-%lld/%lld", &first, &last, &size) != 3) return {-1, -1};
  return {first, size};
}

/// Whether an answer tells, by its size or ETag, that a file without a digest is another one than was looked at.
bool is_other_version(const HttpResponse& head, const WantedFile& file) {
  if (!file.digest.empty()) return false;
  if (head.status == 416) return true;  // shorter than where we are
  if (head.status != 200 && head.status != 206) return false;
  const std::string& etag = head.header("etag");
  if (!etag.empty() && !file.etag.empty() && etag != file.etag) return true;
  const int64_t size =
      head.status == 200 ? head.content_length() : read_content_range(head.header("content-range")).second;
  return size >= 0 && size != file.size;
}

class Transfer {
 public:
  Transfer(const std::vector<WantedFile>& files, const std::string& what, const Refusal& refusal) : refusal_(refusal) {
    require_room(files);
    int64_t total = 0;
    int64_t done = 0;
    for (const WantedFile& file : files) {
      Job& job = *jobs_.emplace_back(std::make_unique<Job>(file));
      total += file.size;
      done += job.partial.done_bytes();
      enqueue(job);
    }
    progress_ = std::make_unique<TransferProgress>(what, done, total);
  }

  void run() {
    std::vector<std::jthread> threads;
    const size_t wanted = std::min(kConnections, queue_.size());
    while (threads.size() + 1 < wanted) {
      try {
        threads.emplace_back([this] { work(); });
      } catch (const std::system_error&) {  // fewer threads do the same
        break;
      }
    }
    work();
    threads.clear();
    progress_.reset();
    if (!failure_) return;
    for (const auto& job : jobs_) {  // nothing to resume: the room that was reserved is given back
      if (job->pieces_left > 0 && (has_changed_ || job->partial.done_bytes() == 0)) job->partial.discard();
    }
    std::rethrow_exception(failure_);
  }

 private:
  void enqueue(Job& job) {
    job.pieces_left = job.partial.pieces();
    for (size_t i = 0; i < job.partial.pieces(); ++i) queue_.push_back({&job, i});
  }

  void work() {
    try {
      HttpClient client;
      while (const std::optional<Piece> piece = next()) {
        fetch(client, *piece);
        const std::scoped_lock hold(mutex_);
        --busy_;
        changed_.notify_all();
      }
    } catch (...) {
      const std::scoped_lock hold(mutex_);
      if (!failure_) failure_ = std::current_exception();
      has_failed_ = true;
      changed_.notify_all();
    }
  }

  /// Waits while others are busy: a file with a wrong digest comes back into the queue.
  std::optional<Piece> next() {
    std::unique_lock hold(mutex_);
    changed_.wait(hold, [this] { return has_failed_ || !queue_.empty() || busy_ == 0; });
    if (has_failed_ || queue_.empty()) return std::nullopt;
    const Piece piece = queue_.front();
    queue_.pop_front();
    ++busy_;
    return piece;
  }

  void fetch(HttpClient& client, const Piece& piece) {
    Job& job = *piece.job;
    {
      const std::scoped_lock hold(mutex_);
      if (job.is_whole) return;
      ++job.threads;
    }
    const Outcome outcome = fetch_piece(client, piece);
    {
      const std::scoped_lock hold(mutex_);
      --job.threads;
      if (has_failed_) return;
      if (outcome == Outcome::kRangeIgnored) job.is_whole = true;
      if (outcome == Outcome::kDone) --job.pieces_left;
      // A server behind a load balancer may answer one piece and ignore the range of the next: nobody may write the
      // whole file, or look at its digest, while another still writes a piece of it.
      if (job.threads > 0 || (job.pieces_left > 0 && !job.is_whole)) return;
    }
    if (job.is_whole) fetch_whole(client, job);
    if (!has_failed_) finish(job);
  }

  Outcome fetch_piece(HttpClient& client, const Piece& piece) {
    Job& job = *piece.job;
    const PartialFile::Span span = job.partial.piece(piece.index);
    const bool is_only = job.partial.pieces() == 1;
    for (Retries retries; job.partial.done(piece.index) < span.end - span.first;) {
      const int64_t before = job.partial.done(piece.index);
      bool is_ignored = false;
      HttpRequest request{job.file.url, job.file.token};
      if (!is_only || before > 0) {
        request.first = span.first + before;
        request.last = span.end - 1;
      }
      request.sink = [&](const HttpResponse& head, std::string_view bytes) {
        is_ignored = head.status != 206 && request.first >= 0;
        if (is_ignored || is_over(job)) return false;
        require_same(head, job.file);
        if (head.status == 206) check_range(head, request.first, job.file);
        const auto lacking = static_cast<size_t>(span.end - span.first - job.partial.done(piece.index));
        const bool is_more = bytes.size() > lacking;
        bytes = bytes.substr(0, lacking);  // the digest tells whether what comes beyond matters
        job.partial.write(piece.index, bytes);
        progress_->add(static_cast<int64_t>(bytes.size()));
        return !is_more;
      };
      const auto has_progress = [&] { return is_ignored || job.partial.done(piece.index) > before; };
      attempt(client, request, {job.file, retries, has_progress, [&] { return is_over(job); }});
      if (is_ignored) return Outcome::kRangeIgnored;
      if (is_over(job)) return Outcome::kEnded;
    }
    return Outcome::kDone;
  }

  void fetch_whole(HttpClient& client, Job& job) {
    {
      const std::scoped_lock hold(mutex_);
      if (!has_warned_) log::warning("{} ignores ranges: one connection a file, from its beginning", job.file.name);
      has_warned_ = true;
    }
    progress_->add(-job.partial.done_bytes());  // what came of its pieces comes again
    int64_t offset = 0;
    for (Retries retries; !has_failed_ && offset < job.file.size;) {
      progress_->add(-offset);
      offset = 0;
      HttpRequest request{job.file.url, job.file.token};
      request.sink = [&](const HttpResponse& head, std::string_view bytes) {
        if (has_failed_) return false;
        require_same(head, job.file);
        const auto lacking = static_cast<size_t>(job.file.size - offset);
        const bool is_more = bytes.size() > lacking;
        bytes = bytes.substr(0, lacking);
        job.partial.write_at(offset, bytes);
        offset += static_cast<int64_t>(bytes.size());
        progress_->add(static_cast<int64_t>(bytes.size()));
        return !is_more;
      };
      const auto has_progress = [&] { return offset == job.file.size; };
      attempt(client, request, {job.file, retries, has_progress, [this] { return has_failed_.load(); }});
    }
  }

  /// Whether nobody needs more of a piece: something has failed, or the file comes at one go.
  [[nodiscard]] bool is_over(const Job& job) const { return has_failed_ || job.is_whole; }

  struct Aim {
    const WantedFile& file;
    Retries& retries;
    std::function<bool()> has_progress;
    std::function<bool()> is_over;
  };

  /// One request. Returns after a success or a pause; throws when there were enough attempts in a row without progress.
  void attempt(HttpClient& client, const HttpRequest& request, const Aim& aim) {
    const WantedFile& file = aim.file;
    std::string what;
    std::optional<double> asked;
    Error last(ExitCode::kUnavailable, "");
    try {
      const HttpResponse response = client.get(request);
      require_same(response, file);  // also without a body
      if (response.status == 200 || response.status == 206) {
        if (aim.is_over() || aim.has_progress()) return aim.retries.reset();
        what = fmt::format("{}: the connection ended early", file.name);
        last = Error(ExitCode::kUnavailable, what, "check the network and the proxy");
      } else {
        last = refusal_(response, file);
        if (!is_passing(response.status)) throw Error(last);
        what = fmt::format("{}: {} answers {}", file.name, response.origin, response.status);
        asked = retry_after(response);
      }
    } catch (const HttpFailure& failure) {
      if (aim.has_progress()) aim.retries.reset();
      what = fmt::format("{}: {}", file.name, failure.what());
      last = Error(ExitCode::kUnavailable, what, failure.hint());
      if (!failure.may_pass()) throw Error(last);
    }
    // What another connection failed with is certain, whatever this one's server asks to wait.
    if (!aim.retries.again(what, asked, aim.is_over)) throw Error(last);
  }

  void require_same(const HttpResponse& head, const WantedFile& file) {
    if (!is_other_version(head, file)) return;
    has_changed_ = true;
    throw FileChanged();
  }

  static void check_range(const HttpResponse& head, int64_t first, const WantedFile& file) {
    const auto [given, size] = read_content_range(head.header("content-range"));
    if (given == first && size == file.size) return;
    throw HttpFailure(fmt::format("asked for bytes from {} of {}, and the answer is '{}'", first, file.size,
                                  head.header("content-range")),
                      "a proxy or a mirror may be wrong: try another HF_ENDPOINT", true);
  }

  void finish(Job& job) {
    if (job.partial.has_digest(job.file.digest)) return job.partial.commit();
    const std::scoped_lock hold(mutex_);
    std::erase_if(queue_, [&job](const Piece& piece) { return piece.job == &job; });  // left over from one go
    if (++job.wrong_digests == kWrongDigests) {
      job.partial.start_over();
      job.pieces_left = job.partial.pieces();
      throw Error(ExitCode::kUnavailable,
                  fmt::format("{}: the bytes that arrive are not those that the hub names (digest {})", job.file.name,
                              job.file.digest),
                  "a proxy or a mirror spoils them: try again later, or another HF_ENDPOINT");
    }
    log::warning("{}: the bytes that arrived are not those that the hub names; fetching them again", job.file.name);
    progress_->add(-job.file.size);
    job.partial.start_over();
    job.is_whole = false;
    enqueue(job);
  }

  const Refusal& refusal_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::unique_ptr<TransferProgress> progress_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> queue_;
  size_t busy_ = 0;
  bool has_warned_ = false;
  std::atomic<bool> has_failed_{false};
  std::atomic<bool> has_changed_{false};
  std::exception_ptr failure_;
};

}  // namespace

void require_room(const std::vector<WantedFile>& files) {
  std::map<fs::path, int64_t> missing;
  for (const WantedFile& file : files) {
    missing[file.target.parent_path()] += PartialFile::missing_bytes(file.target, file.size);
  }
  for (const auto& [folder, bytes] : missing) {
    std::error_code failure;
    const fs::space_info space = fs::space(folder, failure);
    if (failure || static_cast<double>(space.available) >= static_cast<double>(bytes)) continue;
    throw Error(ExitCode::kIo,
                fmt::format("{} are to be downloaded to {}, and {} are free there", bytes_text(bytes), folder.string(),
                            bytes_text(static_cast<int64_t>(space.available))),
                "make room, or set cache_dir or HF_HOME to a larger disk");
  }
}

void transfer(const std::vector<WantedFile>& files, const std::string& what, const Refusal& refusal) {
  if (!files.empty()) Transfer(files, what, refusal).run();
}

}  // namespace fettle::hub
