// SPDX-License-Identifier: Apache-2.0
#include "hub/url_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/utf8.h"
#include "base/watchdog.h"
#include "hub/cache.h"
#include "hub/http.h"
#include "hub/hub_api.h"
#include "hub/hub_client.h"
#include "hub/lock_wait.h"
#include "hub/path.h"
#include "hub/transfer.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr int kMostLooks = 3;  ///< at a file that changes

/// What a URL has now: by its headers, or by the note of an earlier download.
struct Version {
  std::string etag;
  int64_t size = -1;
  std::string place;  ///< of the local copy, below the URL's folder

  bool operator==(const Version&) const = default;
};

/// The last part of the URL's path, fit for a file's name; readers tell the format by its extension.
std::string local_name(const std::string& url) {
  const std::string shown = shown_url(url);
  std::string name = shown.substr(shown.rfind('/') + 1);
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '-' && c != '_') c = '_';
  }
  if (name.size() > 100) name = name.substr(name.size() - 100);
  return name.empty() || name.front() == '.' ? "_" + name : name;
}

bool has_size(const fs::path& file, int64_t size) {
  return is_file(file) && static_cast<int64_t>(fs::file_size(file)) == size;
}

class UrlFetcher {
 public:
  UrlFetcher(const std::string& url, const std::string& cache_dir, const std::string& option)
      : url_(url),
        subject_(fmt::format("{}: {}", option, shown_url(url))),
        folder_(cache_folder(cache_dir) / "fettle-urls" / sha256(url).substr(0, 32)) {}

  fs::path fetch() {
    if (const auto known = find_known(); known && (!RefreshScope::is_active() || is_offline())) return *known;
    if (is_offline()) {
      throw Error(ExitCode::kNoInput, fmt::format("{} is not in the cache {}", subject_, folder_.string()),
                  "nothing is downloaded while HF_HUB_OFFLINE is set: unset it, or run fettle download before");
    }
    const SectionMark mark(Section::kData, "downloading " + shown_url(url_));
    const HubSettings settings = hub_settings();
    if (origin_of(url_) == origin_of(settings.endpoint)) token_ = settings.token;
    make_directories(folder_);
    FileLock lock(folder_ / "lock");
    wait_for_lock(lock, "downloads " + shown_url(url_), [] { return false; });
    if (const auto known = find_known(); known && !RefreshScope::is_active()) return *known;
    return download();
  }

 private:
  [[nodiscard]] fs::path note_file() const { return folder_ / "note.json"; }

  /// The copy that is there, whole.
  [[nodiscard]] std::optional<fs::path> find_known() {
    if (!is_file(note_file())) return std::nullopt;
    const auto note = nlohmann::json::parse(read_file(note_file()), nullptr, /*allow_exceptions=*/false);
    if (!note.is_array() || note.size() != 3 || !note[0].is_string() || !note[1].is_number_integer() ||
        !note[2].is_string() || !is_safe_path(note[2])) {
      return std::nullopt;
    }
    known_ = {note[0], note[1], note[2]};
    const fs::path file = folder_ / known_.place;
    return has_size(file, known_.size) ? std::optional(file) : std::nullopt;
  }

  /// A GET of one byte and not a HEAD, which a presigned URL refuses.
  Version look() {
    HttpRequest request{url_, token_, 0, 0};
    request.sink = [](const HttpResponse&, std::string_view) { return false; };
    const HttpResponse response = get_with_retries(client_, request);
    if (response.status != 200 && response.status != 206 && response.status != 416) throw refusal(response);
    Version version;
    version.etag = response.header("etag");
    const std::string& range = response.header("content-range");
    const size_t slash = range.rfind('/');
    if (response.status == 200) {
      version.size = response.content_length();
    } else if (slash != std::string::npos && std::isdigit(static_cast<unsigned char>(range[slash + 1])) != 0) {
      version.size = std::atoll(range.c_str() + slash + 1);
    }
    const std::string& mark = version.etag.empty() ? response.header("last-modified") : version.etag;
    const std::string key = sha256(fmt::format("{} {}", mark, version.size)).substr(0, 16);
    version.place = key + "/" + local_name(url_);
    return version;
  }

  /// Some files are replaced or grow while they come.
  fs::path download() {
    for (int looks = 1; looks <= kMostLooks; ++looks) {
      try {
        return download(look());
      } catch (const FileChanged&) {
        log::warning("{} has changed since the download began", subject_);
      }
    }
    throw Error(ExitCode::kUnavailable, fmt::format("{} changes while it is downloaded", subject_),
                "try again when nobody writes it");
  }

  fs::path download(Version version) {
    fs::path target = folder_ / version.place;
    if (version == known_ && has_size(target, version.size)) return target;
    make_directories(target.parent_path());
    if (version.size < 0) {
      version.size = stream(target);
    } else if (!has_size(target, version.size)) {
      const WantedFile file{url_, token_, target, shown_url(url_), version.size, "", version.etag};
      transfer({file}, file.name,
               [this](const HttpResponse& response, const WantedFile&) { return refusal(response); });
    }
    write_file(note_file(), nlohmann::json{version.etag, version.size, version.place}.dump() + "\n");
    return target;
  }

  /// A file of unknown size comes at one go.
  int64_t stream(const fs::path& target) {
    for (Retries retries;;) {
      AtomicFile file(target);
      int64_t size = 0;
      HttpRequest request{url_, token_};
      request.sink = [&](const HttpResponse&, std::string_view piece) {
        file.write(piece);
        size += static_cast<int64_t>(piece.size());
        return true;
      };
      try {
        const HttpResponse response = client_.get(request);
        if (response.status == 200) {
          file.commit();
          return size;
        }
        if (!is_passing(response.status) ||
            !retries.again(fmt::format("{} answers {}", response.origin, response.status), retry_after(response))) {
          throw refusal(response);
        }
      } catch (const HttpFailure& failure) {
        if (!failure.may_pass() || !retries.again(failure.what())) throw unavailable(failure);
      }
    }
  }

  [[nodiscard]] Error refusal(const HttpResponse& response) const {
    const std::string what = fmt::format("{}: the server answers {}", subject_, response.status);
    if (response.status == 401 || response.status == 403) {
      return {ExitCode::kPermission, what, "it needs a permission, or a presigned URL has expired: give a new one"};
    }
    if (response.status == 404 || response.status == 410) return {ExitCode::kNoInput, what, "check the URL"};
    return {ExitCode::kUnavailable, what, "try again later"};
  }

  std::string url_;
  std::string subject_;
  fs::path folder_;
  std::string token_;
  Version known_;
  HttpClient client_;
};

}  // namespace

bool is_url(const std::string& value) {
  const size_t end = value.find("://");
  return end != std::string::npos && end > 0 &&
         std::all_of(value.begin(), value.begin() + static_cast<ptrdiff_t>(end),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '+' || c == '-' || c == '.'; });
}

fs::path fetch_url(const std::string& url, const std::string& cache_dir, const std::string& option) {
  if (!origin_of(url).empty()) return UrlFetcher(url, cache_dir, option).fetch();
  const std::string scheme = url.substr(0, url.find("://"));
  const bool is_bucket = scheme == "s3" || scheme == "gs" || scheme == "s3a" || scheme == "az" || scheme == "abfs";
  throw Error(ExitCode::kUsage, fmt::format("{}: {} URLs are not read", option, scheme),
              is_bucket ? "give a presigned https URL, or copy it into the volume before (aws s3 sync, rclone)"
                        : "give an https URL, a file, or a dataset's name on the hub");
}

}  // namespace fettle::hub
