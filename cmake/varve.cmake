# What every target shares: warnings, sanitizers, ccache, and the two functions
# that declare a module (one static library) and its unit tests.

include(CheckCXXCompilerFlag)
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(varve_flags INTERFACE)
target_compile_options(varve_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wnon-virtual-dtor -Wold-style-cast
  -Wno-gnu-statement-expression
  $<$<CXX_COMPILER_ID:GNU>:-Wno-pedantic -Wlogical-op>
  $<$<CXX_COMPILER_ID:Clang>:-Wno-gnu-statement-expression-from-macro-expansion>
  $<$<BOOL:${VARVE_WERROR}>:-Werror>)
target_compile_definitions(varve_flags INTERFACE _FILE_OFFSET_BITS=64 _GNU_SOURCE)
target_include_directories(varve_flags INTERFACE ${PROJECT_SOURCE_DIR}/src)
if(VARVE_SANITIZE)
  target_compile_options(varve_flags INTERFACE -fsanitize=${VARVE_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(varve_flags INTERFACE -fsanitize=${VARVE_SANITIZE})
endif()
if(VARVE_FUZZ)
  target_compile_options(varve_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)

# In builds with a sanitizer only the engine is optimised: the other modules compile in half the time, and wait for
# disks and peers rather than compute.
set(VARVE_ENGINE base io crypto qcow2 check image)

# varve_module(NAME DEPENDS other modules… PRIVATE libraries used in .cc only)
# Takes every .cc of the folder but *_test.cc; builds NAME_test from the *_test.cc beside it.
function(varve_module name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;PRIVATE" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$|/main\\.cc$|_fuzz\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  if(sources)
    add_library(varve_${name} STATIC ${sources})
    target_link_libraries(varve_${name} PUBLIC varve_flags fmt::fmt Threads::Threads)
    target_link_libraries(varve_${name} PRIVATE ${ARG_PRIVATE})
    if(VARVE_SANITIZE AND NOT VARVE_FUZZ AND NOT name IN_LIST VARVE_ENGINE)
      target_compile_options(varve_${name} PRIVATE -O0)
    endif()
    foreach(dep ${ARG_DEPENDS})
      target_link_libraries(varve_${name} PUBLIC varve_${dep})
    endforeach()
  else()
    add_library(varve_${name} INTERFACE)
    target_link_libraries(varve_${name} INTERFACE varve_flags fmt::fmt)
    foreach(dep ${ARG_DEPENDS})
      target_link_libraries(varve_${name} INTERFACE varve_${dep})
    endforeach()
  endif()
  if(VARVE_TESTS AND tests)
    varve_test(${name}_test SOURCES ${tests} DEPENDS ${name})
    if(VARVE_SANITIZE AND NOT name IN_LIST VARVE_ENGINE)
      target_compile_options(${name}_test PRIVATE -O0)
    endif()
  endif()
endfunction()

# varve_loads(MODULE VARIABLE LIBRARY) — the module loads a library when it needs it (base/shared_library.h); VARIABLE is the
# name that the loader knows it by, for its .cc files.
function(varve_loads module variable library)
  find_program(OBJDUMP_PROGRAM objdump REQUIRED)
  execute_process(COMMAND ${OBJDUMP_PROGRAM} -p ${library} OUTPUT_VARIABLE dynamic COMMAND_ERROR_IS_FATAL ANY)
  if(NOT dynamic MATCHES "SONAME +([^\n ]+)")
    message(FATAL_ERROR "${library} is no shared library that could be loaded when it is needed")
  endif()
  target_compile_definitions(varve_${module} PRIVATE ${variable}="${CMAKE_MATCH_1}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${library})  # another one may have another name
endfunction()

# varve_test(NAME SOURCES … DEPENDS modules… LIBRARIES …) — one GoogleTest binary, its cases registered in ctest.
# LABELS go to every case; TIMEOUT is for one case, in seconds.
function(varve_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPENDS;LIBRARIES;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  find_package(GTest REQUIRED)
  include(GoogleTest)
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE varve_flags varve_test_support GTest::gmock GTest::gtest_main ${ARG_LIBRARIES})
  foreach(dep ${ARG_DEPENDS})
    target_link_libraries(${name} PRIVATE varve_${dep})
  endforeach()
  if("crash" IN_LIST ARG_LABELS)
    set(cost 10)  # the longest tests come first, so that nothing waits for them at the end
  else()
    set(cost 0)
  endif()
  gtest_discover_tests(${name} NO_PRETTY_VALUES DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
    PROPERTIES TIMEOUT ${ARG_TIMEOUT} COST ${cost} LABELS "${ARG_LABELS}")
endfunction()
