// What libdlops.so shows to _C (everything else is hidden).
#pragma once
#define DLOPS_API __attribute__((visibility("default")))
