# fettle_room(name SOURCES a.cpp … LINK target …): one static library a room. LINK names the rooms it may include
# (design: one direction, held by tests/layers_test) and its libraries. Sources are listed: a forgotten one fails to link.
function(fettle_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;LINK" ${ARGN})
  add_library(fettle_${name} STATIC ${ROOM_SOURCES})
  target_link_libraries(fettle_${name} PUBLIC fettle_options ${ROOM_LINK})
endfunction()
