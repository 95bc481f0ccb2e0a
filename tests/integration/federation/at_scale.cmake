# The load generator's many identities at one coordinator.
skerry_federation_test(federation_fleet_test SOURCES fleet_test.cc LABEL integration)
add_dependencies(federation_fleet_test skerry-bench)

# Real digits, where SKERRY_DATA has them: three rounds among the integration tests, three seeds to the end among the long ones.
if(SKERRY_TRAINER)
  skerry_federation_test(federation_mnist_short_test SOURCES mnist_short_test.cc mnist_federation.cc DEPS ZLIB::ZLIB LABEL integration)
  skerry_federation_test(federation_mnist_test SOURCES mnist_test.cc mnist_federation.cc DEPS ZLIB::ZLIB LABEL integration LONG TIMEOUT 1800)
  add_dependencies(federation_mnist_short_test skerry-trainer)
  add_dependencies(federation_mnist_test skerry-trainer)
endif()
