// SPDX-License-Identifier: Apache-2.0
/// HTTP by libcurl: the only place that sees it. Proxies come from the environment (https_proxy, no_proxy …),
/// certificate authorities from the system or from SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE, the first that
/// is set.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace fettle::hub {

struct HttpResponse {
  int64_t status = 0;
  std::map<std::string, std::string> headers = {};  ///< names in lower case
  std::string body = {};                            ///< empty where a sink took it
  std::string origin = {};                          ///< of whoever answers, redirects followed

  /// A header's value, empty without one.
  [[nodiscard]] const std::string& header(const std::string& name) const;
  /// Content-Length, or -1.
  [[nodiscard]] int64_t content_length() const;
};

struct HttpRequest {
  std::string url;
  /// Sent as Authorization: Bearer to the origin (scheme, host, port) of `url` alone, never to where it redirects.
  std::string token = {};
  int64_t first = -1;  ///< with `last`: only these bytes are asked for
  int64_t last = -1;
  /// Takes the body of a 2xx answer in pieces; false ends the transfer, which then counts as complete. Without a sink a
  /// body of more than 64 MB is refused.
  std::function<bool(const HttpResponse& head, std::string_view piece)> sink = {};
};

/// A request that got no answer, or not all of it: nobody listens, a timeout, a certificate that is not trusted, a
/// connection that was cut.
class HttpFailure : public std::exception {
 public:
  HttpFailure(std::string what, std::string hint, bool may_pass)
      : what_(std::move(what)), hint_(std::move(hint)), may_pass_(may_pass) {}

  [[nodiscard]] const char* what() const noexcept override { return what_.c_str(); }
  [[nodiscard]] const std::string& hint() const noexcept { return hint_; }
  /// Whether trying again may help.
  [[nodiscard]] bool may_pass() const noexcept { return may_pass_; }

 private:
  std::string what_;
  std::string hint_;
  bool may_pass_;
};

/// Keeps its connection between requests. One thread at a time.
class HttpClient {
 public:
  HttpClient();
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  /// One GET, redirects followed by hand: at most ten, none from https to http. Any status is an answer. Throws
  /// HttpFailure, Error{kPreempted} after a stop signal, and what the sink throws.
  HttpResponse get(const HttpRequest& request);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// When to try again: five attempts, after pauses that double from one second (FETTLE_HUB_RETRY_DELAY) to thirty, each
/// shortened by chance by up to half so that many processes do not come back at once.
class Retries {
 public:
  /// Waits and is true, or is false when there were enough. `asked`: the server's Retry-After, which is waited in full.
  /// The wait ends early where `is_over` says that nobody needs the answer any more. Throws Error{kPreempted} after a
  /// stop signal.
  [[nodiscard]] bool again(std::string_view what, std::optional<double> asked = std::nullopt,
                           const std::function<bool()>& is_over = {});
  /// Something was achieved: begin to count anew.
  void reset() { failures_ = 0; }

 private:
  int failures_ = 0;
};

/// Whether a status says that the server cannot answer now: 408, 429, 500, 502, 503, 504.
bool is_passing(int64_t status);

/// Retry-After in seconds, at most 300; none if the header is absent or a date.
std::optional<double> retry_after(const HttpResponse& response);

/// `client.get` with Retries. After the last one: the answer with its status, or Error{kUnavailable} where there was
/// none.
HttpResponse get_with_retries(HttpClient& client, const HttpRequest& request);

/// Error{kUnavailable} for a failure.
Error unavailable(const HttpFailure& failure);

/// A URL's scheme, host and port, e.g. "https://host:443"; empty if it is no http or https URL.
std::string origin_of(const std::string& url);

/// A URL without user, password, query and fragment, which may hold secrets: for messages.
std::string shown_url(const std::string& url);

/// Percent-encodes all but letters, digits and -._~; '/' too unless `keep_slashes`.
std::string url_encode(std::string_view text, bool keep_slashes = false);

}  // namespace fettle::hub
