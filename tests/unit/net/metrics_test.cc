#include "server/metrics/metrics.h"

#include <catch2/catch.hpp>

#include <thread>

using namespace skerry::server;

TEST_CASE("figures are rendered as Prometheus reads them") {
  Metrics metrics;
  metrics.counter("skerry_things_total", "Things\nseen.", {{"kind", "a \"b\"\\\n"}}).add(3);
  metrics.gauge("skerry_level", "Level.").set(-1.5);
  metrics.gauge_from("skerry_free", "Free.", [] { return 7.0; });
  auto& seconds = metrics.histogram("skerry_seconds", "Time.", {0.1, 1}, {{"route", "/"}});
  seconds.observe(0.1);
  seconds.observe(0.5);
  seconds.observe(5);
  CHECK(metrics.prometheus_text() ==
        "# HELP skerry_free Free.\n# TYPE skerry_free gauge\nskerry_free 7\n"
        "# HELP skerry_level Level.\n# TYPE skerry_level gauge\nskerry_level -1.5\n"
        "# HELP skerry_seconds Time.\n# TYPE skerry_seconds histogram\n"
        "skerry_seconds_bucket{route=\"/\",le=\"0.1\"} 1\nskerry_seconds_bucket{route=\"/\",le=\"1\"} 2\n"
        "skerry_seconds_bucket{route=\"/\",le=\"+Inf\"} 3\nskerry_seconds_sum{route=\"/\"} "
        "5.6\nskerry_seconds_count{route=\"/\"} 3\n"
        "# HELP skerry_things_total Things\\nseen.\n# TYPE skerry_things_total counter\n"
        "skerry_things_total{kind=\"a \\\"b\\\"\\\\\\n\"} 3\n");
}

TEST_CASE("the same labels in another order are the same series") {
  Metrics metrics;
  Counter& one = metrics.counter("x_total", "", {{"a", "1"}, {"b", "2"}});
  CHECK(&one == &metrics.counter("x_total", "", {{"b", "2"}, {"a", "1"}}));
}

TEST_CASE("beyond the most series a name holds, further label sets share one") {
  Metrics metrics;
  for (std::size_t i = 0; i < Metrics::kMaxSeries; ++i)
    metrics.counter("x_total", "", {{"who", std::to_string(i)}}).add();
  Counter& late = metrics.counter("x_total", "", {{"who", "late"}});
  CHECK(&late == &metrics.counter("x_total", "", {{"who", "later"}}));
  CHECK(metrics.prometheus_text().find("who=\"other\"") != std::string::npos);
}

TEST_CASE("adding from several threads loses nothing") {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 10'000; ++n) metrics.counter("x_total", "").add();
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(metrics.counter("x_total", "").value() == 40'000);
}
