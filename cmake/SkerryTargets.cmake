# The few rules every target follows: C++20, all warnings are errors, no fused multiply-add (a model's bytes must not
# depend on the compiler), includes from the repository's root.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CCACHE}")
endif()

add_library(skerry_options INTERFACE)
target_compile_options(skerry_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wvla
  -Wno-missing-field-initializers -Werror -ffp-contract=off)
target_include_directories(skerry_options INTERFACE "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>")
if(SKERRY_SANITIZE)
  # GCC warns wrongly of uninitialised values inside instrumented third-party templates. What UBSan finds ends the program.
  target_compile_options(skerry_options INTERFACE -fsanitize=${SKERRY_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_link_options(skerry_options INTERFACE -fsanitize=${SKERRY_SANITIZE})
endif()

# skerry_library(NAME SOURCES a.cc … DEPS lib …): a static library; DEPS are public.
function(skerry_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE skerry_options PUBLIC ${arg_DEPS})
endfunction()

# skerry_export(FOLDER TARGET…): installs these libraries and FOLDER's headers as part of the package `Skerry`, so that others
# can write rules against them: find_package(Skerry), then link Skerry::skerry_aggregation. Component: sdk.
function(skerry_export folder)
  foreach(name IN LISTS ARGN)
    target_include_directories(${name} INTERFACE "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/skerry>")
  endforeach()
  install(TARGETS ${ARGN} EXPORT SkerryTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT sdk)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/${folder}/" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/skerry/${folder} COMPONENT sdk
          FILES_MATCHING PATTERN "*.h" PATTERN "sdk" EXCLUDE)
endfunction()

# skerry_program(NAME SOURCES a.cc … DEPS lib …): an installed executable, found in build/<preset>/bin.
function(skerry_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE skerry_options ${arg_DEPS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# skerry_test(NAME SOURCES a.cc … DEPS lib … LABEL unit|simulation|integration|fault [LONG] [TIMEOUT s]): a Catch2 program.
# LONG tests run only under `tests/run.sh --all`.
function(skerry_test name)
  cmake_parse_arguments(arg "LONG" "LABEL;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE skerry_options skerry_test_main ${arg_DEPS})
  add_test(NAME ${name} COMMAND ${name})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  set(labels ${arg_LABEL})
  if(arg_LONG)
    list(APPEND labels long)
  endif()
  # Tests find the built programs and the shared real data through these.
  set_tests_properties(${name} PROPERTIES LABELS "${labels}" TIMEOUT ${arg_TIMEOUT} ENVIRONMENT
    "SKERRY_BIN=${PROJECT_BINARY_DIR}/bin;SKERRY_SOURCE=${PROJECT_SOURCE_DIR};SKERRY_DATA=${PROJECT_SOURCE_DIR}/../shared/data")
endfunction()
