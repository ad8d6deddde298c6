// SPDX-License-Identifier: Apache-2.0
#include "hub/http.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <random>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/stop_signal.h"
#include "base/utf8.h"
#include "hub/environment.h"

namespace fettle::hub {
namespace {

constexpr size_t kLargestBody = size_t{64} << 20;
constexpr int kMostRedirects = 10;
constexpr int kAttempts = 5;
constexpr double kLongestPause = 30;
constexpr double kLongestAskedPause = 300;

double environment_seconds(const char* name, double otherwise) {
  const std::string text = environment(name);
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end != text.c_str() && value > 0 && value < 1e6 ? value : otherwise;
}

void check_stop_signal() {
  if (stop_signal() == 0) return;
  throw Error(ExitCode::kPreempted, fmt::format("stopped by {} while downloading", signal_name(stop_signal())),
              "run the same command again: what has arrived is kept");
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

/// A parsed URL, by curl's own parser, so that no other reading of it decides where a token goes.
class Url {
 public:
  explicit Url(const std::string& text) : handle_(curl_url()) {
    is_valid_ = curl_url_set(handle_, CURLUPART_URL, text.c_str(), 0) == CURLUE_OK;
  }
  ~Url() { curl_url_cleanup(handle_); }
  Url(const Url&) = delete;
  Url& operator=(const Url&) = delete;

  /// Where a Location header leads from here; false for one that is no URL.
  bool follow(const std::string& location) {
    return curl_url_set(handle_, CURLUPART_URL, location.c_str(), 0) == CURLUE_OK;
  }
  void remove(CURLUPart part) { curl_url_set(handle_, part, nullptr, 0); }
  [[nodiscard]] std::string part(CURLUPart part) const {
    char* text = nullptr;
    if (!is_valid_ || curl_url_get(handle_, part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return {};
    std::string result = text;
    curl_free(text);
    return result;
  }
  [[nodiscard]] std::string whole() const {
    char* text = nullptr;
    if (!is_valid_ || curl_url_get(handle_, CURLUPART_URL, &text, 0) != CURLUE_OK) return {};
    std::string result = text;
    curl_free(text);
    return result;
  }

 private:
  CURLU* handle_;
  bool is_valid_ = false;
};

/// One exchange: what curl's callbacks need.
struct Exchange {
  const HttpRequest* request;
  HttpResponse response;
  std::exception_ptr thrown;
  bool ended_by_sink = false;
  bool is_too_large = false;
};

size_t take_header(char* data, size_t, size_t size, void* context) {
  auto& exchange = *static_cast<Exchange*>(context);
  const std::string_view line(data, size);
  if (line.starts_with("HTTP/")) {  // also after 100 Continue and a proxy's answer
    exchange.response = {.origin = exchange.response.origin};
    const size_t space = line.find(' ');
    if (space != std::string_view::npos) {
      const std::string_view code = line.substr(space + 1);
      std::from_chars(code.data(), code.data() + code.size(), exchange.response.status);
    }
  } else if (const size_t colon = line.find(':'); colon != std::string_view::npos) {
    exchange.response.headers[lower(line.substr(0, colon))] = trim(line.substr(colon + 1));
  }
  return size;
}

size_t take_body(char* data, size_t, size_t size, void* context) {
  auto& exchange = *static_cast<Exchange*>(context);
  const HttpResponse& response = exchange.response;
  try {
    if (exchange.request->sink && response.status >= 200 && response.status < 300) {
      if (exchange.request->sink(response, {data, size})) return size;
      exchange.ended_by_sink = true;
      return 0;
    }
  } catch (...) {
    exchange.thrown = std::current_exception();
    return 0;
  }
  exchange.is_too_large = response.body.size() + size > kLargestBody;
  if (exchange.is_too_large) return 0;
  exchange.response.body.append(data, size);
  return size;
}

int look_for_stop(void*, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return stop_signal() == 0 ? 0 : 1;
}

/// What to do about a failure of curl.
std::string hint_of(CURLcode code) {
  switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
      return "if a proxy or a private hub has its own certificate authority, give its file as SSL_CERT_FILE";
    case CURLE_COULDNT_RESOLVE_PROXY:
      return "check https_proxy and http_proxy";
    default:
      return "check the network, HF_ENDPOINT and https_proxy; without a network, fill the hub cache elsewhere with "
             "fettle download";
  }
}

bool may_pass(CURLcode code) {
  switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
      return false;
    default:
      return true;
  }
}

void set_authorities(CURL* curl) {
  for (const char* name : {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}) {
    const std::string path = environment(name);
    if (path.empty()) continue;
    std::error_code failure;
    curl_easy_setopt(curl, std::filesystem::is_directory(path, failure) ? CURLOPT_CAPATH : CURLOPT_CAINFO,
                     path.c_str());
    return;
  }
}

using HeaderList = std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)>;

HeaderList header_lines(const std::string& token) {
  curl_slist* lines = curl_slist_append(nullptr, "Accept-Encoding: identity");
  if (!token.empty()) lines = curl_slist_append(lines, ("Authorization: Bearer " + token).c_str());
  return {lines, curl_slist_free_all};
}

}  // namespace

struct HttpClient::State {
  CURL* curl = nullptr;
};

HttpClient::HttpClient() : state_(std::make_unique<State>()) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  state_->curl = started == CURLE_OK ? curl_easy_init() : nullptr;
  if (state_->curl == nullptr) throw Error(ExitCode::kInternal, "libcurl cannot be used");
}

HttpClient::~HttpClient() {
  curl_easy_cleanup(state_->curl);
}

namespace {

void set_options(CURL* curl, Exchange& exchange) {
  const double connect = environment_seconds("HF_HUB_ETAG_TIMEOUT", 10);
  const double stall = environment_seconds("HF_HUB_DOWNLOAD_TIMEOUT", 30);
  curl_easy_reset(curl);  // keeps the connections
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "fettle");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
#if LIBCURL_VERSION_NUM >= 0x075500
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
#else
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS, CURLPROTO_HTTP | CURLPROTO_HTTPS);
#endif
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(connect * 1000));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, std::max(1L, static_cast<long>(stall)));
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 262144L);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &exchange);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &exchange);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, look_for_stop);
  set_authorities(curl);
}

/// One request without redirects.
HttpResponse exchange_once(CURL* curl, const HttpRequest& request, const std::string& url, const std::string& token) {
  Exchange exchange{&request, {.origin = origin_of(url)}, nullptr};
  set_options(curl, exchange);
  const HeaderList lines = header_lines(token);
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, lines.get());
  const std::string range = fmt::format("{}-{}", request.first, request.last);
  if (request.first >= 0) curl_easy_setopt(curl, CURLOPT_RANGE, range.c_str());
  char reason[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
  const CURLcode code = curl_easy_perform(curl);
  if (exchange.thrown) std::rethrow_exception(exchange.thrown);
  check_stop_signal();
  if (exchange.is_too_large) {
    throw HttpFailure(fmt::format("{} answers with more than 64 MB", shown_url(url)), "check HF_ENDPOINT", false);
  }
  if (code == CURLE_OK || exchange.ended_by_sink) return std::move(exchange.response);
  const std::string why = reason[0] != '\0' ? reason : curl_easy_strerror(code);
  throw HttpFailure(fmt::format("{} cannot be reached: {}", origin_of(url), one_line(why)), hint_of(code),
                    may_pass(code));
}

}  // namespace

HttpResponse HttpClient::get(const HttpRequest& request) {
  Url url(request.url);
  const std::string origin = origin_of(request.url);
  for (int redirects = 0;; ++redirects) {
    const std::string here = url.whole();
    if (origin_of(here).empty()) {
      throw HttpFailure(fmt::format("{} is not an http or https URL", quote(shown_url(here))), "check HF_ENDPOINT",
                        false);
    }
    const bool may_know_token = origin_of(here) == origin;
    HttpResponse response = exchange_once(state_->curl, request, here, may_know_token ? request.token : std::string());
    const std::string& location = response.header("location");
    if (response.status < 300 || response.status >= 400 || response.status == 304 || location.empty()) return response;
    const bool was_secure = url.part(CURLUPART_SCHEME) == "https";
    if (redirects == kMostRedirects || !url.follow(location)) {
      throw HttpFailure(fmt::format("{} redirects without end", shown_url(request.url)), "check HF_ENDPOINT", false);
    }
    if (was_secure && url.part(CURLUPART_SCHEME) != "https") {
      throw HttpFailure(fmt::format("{} redirects from https to {}", shown_url(request.url), origin_of(url.whole())),
                        "use a hub that stays with https", false);
    }
  }
}

const std::string& HttpResponse::header(const std::string& name) const {
  static const std::string kNone;
  const auto found = headers.find(name);
  return found == headers.end() ? kNone : found->second;
}

int64_t HttpResponse::content_length() const {
  const std::string& text = header("content-length");
  int64_t value = -1;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  return failure == std::errc() && end == text.data() + text.size() ? value : -1;
}

bool Retries::again(std::string_view what, std::optional<double> asked, const std::function<bool()>& is_over) {
  if (++failures_ >= kAttempts) return false;
  static thread_local std::mt19937 random{std::random_device()()};
  const double whole = std::min(kLongestPause, environment_seconds("FETTLE_HUB_RETRY_DELAY", 1) * (1 << failures_) / 2);
  const double pause = asked.value_or(whole * std::uniform_real_distribution<>(0.5, 1.0)(random));
  log::warning("{}; trying again in {:.1f} s", what, pause);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(pause);
  while (std::chrono::steady_clock::now() < end && !(is_over && is_over())) {
    check_stop_signal();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

bool is_passing(int64_t status) {
  return status == 408 || status == 429 || status == 500 || (status >= 502 && status <= 504);
}

std::optional<double> retry_after(const HttpResponse& response) {
  const std::string& text = response.header("retry-after");
  char* end = nullptr;
  const double seconds = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || *end != '\0' || !(seconds >= 0)) return std::nullopt;
  return std::min(seconds, kLongestAskedPause);
}

HttpResponse get_with_retries(HttpClient& client, const HttpRequest& request) {
  for (Retries retries;;) {
    try {
      HttpResponse response = client.get(request);
      if (!is_passing(response.status) ||
          !retries.again(fmt::format("{} answers {}", response.origin, response.status), retry_after(response))) {
        return response;
      }
    } catch (const HttpFailure& failure) {
      if (!failure.may_pass() || !retries.again(failure.what())) throw unavailable(failure);
    }
  }
}

Error unavailable(const HttpFailure& failure) {
  return {ExitCode::kUnavailable, failure.what(), failure.hint()};
}

std::string origin_of(const std::string& url) {
  const Url parsed(url);
  const std::string scheme = lower(parsed.part(CURLUPART_SCHEME));
  if (scheme != "http" && scheme != "https") return {};
  return fmt::format("{}://{}:{}", scheme, lower(parsed.part(CURLUPART_HOST)), parsed.part(CURLUPART_PORT));
}

std::string shown_url(const std::string& url) {
  Url parsed(url);
  for (const CURLUPart part : {CURLUPART_USER, CURLUPART_PASSWORD, CURLUPART_QUERY, CURLUPART_FRAGMENT}) {
    parsed.remove(part);
  }
  std::string whole = parsed.whole();
  if (whole.ends_with('/')) whole.pop_back();
  return whole;
}

std::string url_encode(std::string_view text, bool keep_slashes) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool is_plain = (std::isalnum(byte) != 0 && byte < 128) || c == '-' || c == '.' || c == '_' || c == '~';
    if (is_plain || (keep_slashes && c == '/')) {
      result += c;
    } else {
      result += fmt::format("%{:02X}", byte);
    }
  }
  return result;
}

}  // namespace fettle::hub
