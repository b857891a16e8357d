# OBJECTS: the objects of libdlops.so, separated by |. Fails if an object that was compiled for one instruction set
# defines a weak symbol: the linker keeps one copy of such a symbol for all.
string(REPLACE "|" ";" objects "${OBJECTS}")
foreach(object IN LISTS objects)
  if(NOT object MATCHES "_(avx2|avx512|avx512bf16)\\.dir")
    continue()
  endif()
  execute_process(COMMAND nm --defined-only --demangle ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WwVvu] [^\n]*" weak "${symbols}")
  if(weak)
    string(REPLACE ";" "\n" weak "${weak}")
    message(FATAL_ERROR "weak symbols in ${object}, shared between instruction sets:\n${weak}")
  endif()
endforeach()
