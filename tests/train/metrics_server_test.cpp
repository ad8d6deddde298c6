// SPDX-License-Identifier: Apache-2.0
#include "train/metrics_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "base/watchdog.h"
#include "support/free_port.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string get(uint16_t port, const std::string& path) {
  const int connection = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_EQ(::send(connection, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char bytes[4096];
  for (ssize_t count = 0; (count = ::recv(connection, bytes, sizeof(bytes), 0)) > 0;) {
    answer.append(bytes, static_cast<size_t>(count));
  }
  ::close(connection);
  return answer;
}

TEST(MetricsServer, ServesWhatItWasShownLast) {
  const uint16_t port = free_port();
  MetricsServer server(port, {{"model", "a\"b"}});
  StepMetrics metrics;
  metrics.step = 12;
  metrics.loss = 1.25;
  metrics.tokens = 3000;
  server.show(metrics, 40, 61);
  metrics.step = 13;
  metrics.tokens = 3500;
  server.show(metrics, 40, 60);
  server.evaluated({.loss = 0.5, .target_tokens = 1, .records = 1});
  const std::string answer = get(port, "/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  for (const char* line :
       {"# TYPE fettle_step gauge\nfettle_step 13\n", "\nfettle_loss 1.25\n",
        "# TYPE fettle_tokens_total counter\nfettle_tokens_total 3500\n", "\nfettle_eta_seconds 60\n",
        "\nfettle_eval_loss 0.5\n", "\nfettle_last_save_step 0\n", "\nfettle_run_info{model=\"a\\\"b\"} 1\n"}) {
    EXPECT_THAT(answer, HasSubstr(line));
  }
  server.saved(13);
  EXPECT_THAT(get(port, "/metrics"), HasSubstr("\nfettle_last_save_step 13\n"));
}

TEST(MetricsServer, SaysThatItLivesAndWhatItDoes) {
  const uint16_t port = free_port();
  const MetricsServer server(port, {});
  EXPECT_THAT(get(port, "/healthz"), HasSubstr("\r\n\r\n{\"status\":\"ok\",\"doing\":\"\"}\n"));
  const SectionMark mark(Section::kSave, "checkpoint-7");
  EXPECT_THAT(get(port, "/healthz"), HasSubstr("\"doing\":\"save (checkpoint-7)\""));
  EXPECT_THAT(get(port, "/"), HasSubstr(" 404 Not Found"));
  EXPECT_THAT(get(port, "/metrics/../etc/passwd"), testing::Not(HasSubstr("root:")));
}

TEST(MetricsServer, EndsAndGivesItsPortBack) {
  const uint16_t port = free_port();
  { const MetricsServer server(port, {}); }
  const MetricsServer again(port, {});
  EXPECT_THAT(get(port, "/healthz"), StartsWith("HTTP/1.1 200"));
}

TEST(MetricsServer, APortThatIsTakenIsAnError) {
  const FreePort other;
  other.listen();
  EXPECT_EQ(code_of([&] { MetricsServer(other.port(), {}); }), ExitCode::kUnavailable);
}

}  // namespace
}  // namespace fettle::train
