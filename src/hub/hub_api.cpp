// SPDX-License-Identifier: Apache-2.0
#include "hub/hub_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/file.h"
#include "base/utf8.h"
#include "hub/environment.h"
#include "hub/path.h"

namespace fettle::hub {
namespace {

constexpr int kMostPages = 1000;  ///< of a listing, a thousand files each

bool is_true(const std::string& text) {
  std::string upper = text;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return upper == "1" || upper == "ON" || upper == "YES" || upper == "TRUE";
}

/// The first of the places that has a token, and its name.
std::pair<std::string, std::string> find_token() {
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (std::string token = trim(environment(name)); !token.empty()) return {std::move(token), name};
  }
  const std::string given = environment("HF_TOKEN_PATH");
  const std::filesystem::path file = given.empty() ? hugging_face_home() / "token" : std::filesystem::path(given);
  if (!given.empty() && !path_exists(file)) {
    throw Error(ExitCode::kPermission, fmt::format("HF_TOKEN_PATH: {} does not exist", file.string()),
                "check the path, or unset HF_TOKEN_PATH");
  }
  if (!is_file(file)) return {};
  return {trim(read_file(file)), file.string()};
}

void check_token(const std::string& token, const std::string& source) {
  if (std::ranges::all_of(token, [](unsigned char c) { return c > 32 && c < 127; })) return;
  throw Error(ExitCode::kPermission,
              fmt::format("the token in {} has white space or a character inside that no token has", source),
              "store the token alone, on one line");
}

}  // namespace

bool is_offline() {
  const std::string own = environment("HF_HUB_OFFLINE");
  return is_true(own.empty() ? environment("TRANSFORMERS_OFFLINE") : own);
}

HubSettings hub_settings() {
  HubSettings settings;
  settings.endpoint = trim(environment("HF_ENDPOINT"));
  if (settings.endpoint.empty()) settings.endpoint = "https://huggingface.co";
  while (settings.endpoint.ends_with('/')) settings.endpoint.pop_back();
  if (origin_of(settings.endpoint).empty()) {
    throw Error(ExitCode::kConfig, fmt::format("HF_ENDPOINT: {} is not an http or https URL", quote(settings.endpoint)),
                "write it as https://host");
  }
  std::tie(settings.token, settings.token_source) = find_token();
  check_token(settings.token, settings.token_source);
  return settings;
}

HubApi::HubApi(HubSettings settings, Repository repository)
    : settings_(std::move(settings)), repository_(std::move(repository)) {}

std::string HubApi::api_url() const {
  const char* kind = repository_.kind == RepositoryKind::kModel ? "models" : "datasets";
  return fmt::format("{}/api/{}/{}", settings_.endpoint, kind, repository_.name);
}

std::string HubApi::page() const {
  const char* kind = repository_.kind == RepositoryKind::kModel ? "" : "datasets/";
  return fmt::format("{}/{}{}", shown_url(settings_.endpoint), kind, repository_.name);
}

std::string HubApi::file_url(const std::string& commit, const std::string& path) const {
  const char* kind = repository_.kind == RepositoryKind::kModel ? "" : "datasets/";
  return fmt::format("{}/{}{}/resolve/{}/{}", settings_.endpoint, kind, repository_.name, url_encode(commit),
                     url_encode(path, /*keep_slashes=*/true));
}

std::string HubApi::subject() const {
  return fmt::format("{}: {}", repository_.option, repository_.name);
}

Error HubApi::strange(const std::string& what) const {
  return {ExitCode::kUnavailable, fmt::format("{}: {} {}", subject(), shown_url(settings_.endpoint), what),
          "check HF_ENDPOINT and the proxy"};
}

HttpResponse HubApi::get(const std::string& url) {
  HttpResponse response = get_with_retries(client_, {url, settings_.token});
  if (response.status != 200) throw refusal(response, "");
  return response;
}

std::string HubApi::find_commit() {
  const HttpResponse response = get(api_url() + "/revision/" + url_encode(repository_.revision));
  const nlohmann::json answer = nlohmann::json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  const nlohmann::json commit = answer.is_object() ? answer.value("sha", nlohmann::json()) : nlohmann::json();
  if (!commit.is_string() || !is_commit(commit.get<std::string>())) {
    throw strange("does not answer with a commit, as a hub does");
  }
  return commit.get<std::string>();
}

namespace {

/// A file of a listing's page; false for what is no file.
bool read_entry(const nlohmann::json& entry, ListedFile& file) {
  if (!entry.is_object() || entry.value("type", nlohmann::json()) != "file") return false;
  const nlohmann::json path = entry.value("path", nlohmann::json());
  const nlohmann::json size = entry.value("size", nlohmann::json());
  nlohmann::json digest = entry.value("oid", nlohmann::json());
  const nlohmann::json large = entry.value("lfs", nlohmann::json());
  if (large.is_object()) digest = large.value("oid", nlohmann::json());
  if (!path.is_string() || !size.is_number_integer() || !digest.is_string()) return false;
  file = {path.get<std::string>(), size.get<int64_t>(), digest.get<std::string>()};
  return is_digest(file.digest) && file.size >= 0 && is_safe_path(file.path);
}

/// The URL of `<url>; rel="next"` in a Link header, or empty.
std::string next_page(const HttpResponse& response) {
  const std::string& link = response.header("link");
  const size_t mark = link.find("rel=\"next\"");
  const size_t begin = mark == std::string::npos ? mark : link.rfind('<', mark);
  if (begin == std::string::npos) return {};
  return link.substr(begin + 1, link.find('>', begin) - begin - 1);
}

}  // namespace

Listing HubApi::list(const std::string& commit) {
  Listing listing;
  std::string url = fmt::format("{}/tree/{}?recursive=true", api_url(), commit);
  for (int page = 0; !url.empty(); ++page) {
    const HttpResponse response = get(url);
    const nlohmann::json entries = nlohmann::json::parse(response.body, nullptr, /*allow_exceptions=*/false);
    if (!entries.is_array() || page == kMostPages) throw strange("does not list files, as a hub does");
    ListedFile file;
    for (const nlohmann::json& entry : entries) {
      if (read_entry(entry, file)) listing.push_back(file);
    }
    url = next_page(response);
    if (!url.empty() && origin_of(url) != origin_of(settings_.endpoint)) {
      throw strange("lists files on another host");  // which must not get the token
    }
  }
  return listing;
}

Error HubApi::refused_token(bool is_gated) const {
  const bool has_token = !settings_.token.empty();
  const std::string give = "set HF_TOKEN, or HF_TOKEN_PATH to a file, to a token of that account";
  if (is_gated) {
    return {ExitCode::kPermission,
            fmt::format("{} is gated, and {}", subject(),
                        has_token ? "the account of the token in " + settings_.token_source + " has no access"
                                  : "no token is given"),
            has_token ? fmt::format("accept the licence at {} with this account", page())
                      : fmt::format("accept the licence at {} and {}", page(), give)};
  }
  if (!has_token) {
    return {ExitCode::kPermission,
            fmt::format("{} is neither a local folder nor public on {}: it is private or does not exist, and no token "
                        "is given",
                        subject(), shown_url(settings_.endpoint)),
            "check the name, or set HF_TOKEN, or HF_TOKEN_PATH to a file, to a token of an account that may read it"};
  }
  return {
      ExitCode::kPermission,
      fmt::format("{}: {} refuses the token in {}", subject(), shown_url(settings_.endpoint), settings_.token_source),
      "make a new token that may read this repository, or unset it if the repository is public"};
}

/// The token never went there, so it is not what is wrong: a proxy or a network policy lets nobody through to the hub's
/// store of files, or a signature has run out.
Error HubApi::refused_elsewhere(const HttpResponse& response) const {
  return {ExitCode::kUnavailable,
          fmt::format("{}: {}, to which the hub redirects, answers {}", subject(), response.origin, response.status),
          "allow that host in the proxy or network policy, or try again"};
}

Error HubApi::refusal(const HttpResponse& response, const std::string& file) const {
  const std::string& code = response.header("x-error-code");
  const std::string& endpoint = settings_.endpoint;
  const bool is_elsewhere = response.origin != origin_of(endpoint);
  const bool is_refused = response.status == 401 || response.status == 403;
  if (is_refused && is_elsewhere) return refused_elsewhere(response);
  if (code == "GatedRepo") return refused_token(/*is_gated=*/true);
  if (code == "RevisionNotFound") {
    return {ExitCode::kNoInput, fmt::format("{} has no revision {}", subject(), quote(repository_.revision)),
            fmt::format("see its branches, tags and commits at {}", page())};
  }
  if (code == "EntryNotFound" || (response.status == 404 && !file.empty())) {
    return {ExitCode::kNoInput, fmt::format("{} has no file {} at revision {}", subject(), file, repository_.revision),
            fmt::format("see its files at {}", page())};
  }
  if (is_refused) return refused_token(/*is_gated=*/false);
  if (response.status == 404) {
    return {ExitCode::kNoInput,
            fmt::format("{} is neither a local folder nor a repository on {}", subject(), shown_url(endpoint)),
            "check the name; a private one needs a token that may read it (HF_TOKEN or HF_TOKEN_PATH)"};
  }
  if (response.status == 429) {
    return {ExitCode::kUnavailable, fmt::format("{}: {} asks for fewer requests (429)", subject(), shown_url(endpoint)),
            settings_.token.empty() ? "try again later; with a token (HF_TOKEN) more are allowed" : "try again later"};
  }
  const std::string& message = response.header("x-error-message");
  return {ExitCode::kUnavailable,
          fmt::format("{}: {} answers {}{}", subject(), is_elsewhere ? response.origin : shown_url(endpoint),
                      response.status, message.empty() ? "" : " " + quote(message)),
          "try again later; see the hub's status page"};
}

}  // namespace fettle::hub
