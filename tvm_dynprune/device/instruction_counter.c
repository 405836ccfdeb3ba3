// SPDX-License-Identifier: Apache-2.0
// QEMU plugin (API 1): counts the guest's instructions in a file that the guest can map.
//
//   qemu-aarch64 -plugin instruction_counter.so,clock=FILE ...
//
// The file is 4096 bytes; its first 8 are the count. QEMU's packages bring no header, so what is
// needed of it is declared here (qemu/qemu-plugin.h).
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef struct qemu_info_t qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*call)(qemu_plugin_id_t, struct qemu_plugin_tb*));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* tb);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* tb, enum qemu_plugin_op op,
                                              void* counter, uint64_t amount);

EXPORT int qemu_plugin_version = 1;

static uint64_t* count;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, count,
                                           qemu_plugin_tb_n_insns(tb));
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc, char** argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "clock=", 6) != 0) {
    fprintf(stderr, "instruction_counter: takes clock=FILE\n");
    return 1;
  }
  int fd = open(argv[0] + 6, O_RDWR | O_CREAT, 0600);
  void* page = MAP_FAILED;
  if (fd >= 0 && ftruncate(fd, 4096) == 0) {
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (page == MAP_FAILED) {
    perror(argv[0] + 6);
    return 1;
  }
  count = page;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  return 0;
}
