#include "client/trainer/island_link.h"

#include <string>

#include <catch2/catch.hpp>

namespace skerry::trainer {

TEST_CASE("a stranger's frame is refused by the length it promises, before there is memory for it") {
  auto door = IslandDoor::open({"127.0.0.1", 0});
  REQUIRE(door.ok());
  auto worker = IslandLink::connect(door->address());
  REQUIRE(worker.ok());
  auto leader = door->accept(1'000);
  REQUIRE(leader.ok());
  REQUIRE(worker->send(FrameKind::kHello, std::string(4096, ' ')).ok());
  const auto hello = leader->expect(FrameKind::kHello, 1'000, 4096);
  REQUIRE(hello.ok());
  CHECK(hello->size() == 4096);
  REQUIRE(worker->send(FrameKind::kHello, std::string(4097, ' ')).ok());
  const auto refused = leader->expect(FrameKind::kHello, 1'000, 4096);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kInvalidArgument);
}

}  // namespace skerry::trainer
