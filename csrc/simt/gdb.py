"""Two gdb commands for kernels that run in the simt runner:  (gdb) source csrc/simt/gdb.py

cuda-threads       where each CUDA thread of the current block is
cuda-thread RANK   the backtrace of a thread that waits (its rank in the block)
"""

import gdb

THREAD = "((dlops::simt::Thread*)dlops::simt::here)"
REGISTERS = ("r15", "r14", "r13", "r12", "rbx", "rbp", "rip")  # as fiber.S leaves them on the stack (x86-64)


def _threads():
    vector = gdb.parse_and_eval(f"{THREAD}->block->threads")["_M_impl"]
    first = vector["_M_start"]
    return [first[i] for i in range(int(vector["_M_finish"] - first))]


def _state(thread, running):
    if int(thread["rank"]) == running:
        return "runs (this one)"
    if thread["done"]:
        return "has returned"
    if not int(thread["waits_for"]):
        return "has not begun"
    loc = thread["loc"]
    return f"waits at {thread['waits_for'].string()} {loc['file'].string()}:{int(loc['line'])}"


class CudaThreads(gdb.Command):
    """Where each CUDA thread of the current block is."""

    def __init__(self):
        super().__init__("cuda-threads", gdb.COMMAND_USER)

    def invoke(self, argument, from_tty):
        running = int(gdb.parse_and_eval(f"{THREAD}->rank"))
        groups = {}
        for thread in _threads():
            groups.setdefault(_state(thread, running), []).append(int(thread["rank"]))
        index = gdb.parse_and_eval(f"{THREAD}->block_index")
        print(f"block ({int(index['x'])},{int(index['y'])},{int(index['z'])})")
        for state, ranks in groups.items():
            print(f"  {len(ranks):4} threads, ranks {ranks[0]}..{ranks[-1]}: {state}")


class CudaThread(gdb.Command):
    """The backtrace of a waiting CUDA thread, by its rank in the block."""

    def __init__(self):
        super().__init__("cuda-thread", gdb.COMMAND_USER)

    def invoke(self, argument, from_tty):
        sp = int(_threads()[int(argument)]["fiber"]["sp"])
        new = {name: int(gdb.parse_and_eval(f"*(unsigned long*){sp + 8 * i}")) for i, name in enumerate(REGISTERS)}
        new["rsp"] = sp + 8 * len(REGISTERS)
        gdb.execute("frame 0", to_string=True)
        old = {name: int(gdb.parse_and_eval(f"(unsigned long)${name}")) for name in new}
        for name, value in new.items():
            gdb.execute(f"set ${name} = {value}")
        try:
            gdb.execute("backtrace")
        finally:
            for name, value in old.items():
                gdb.execute(f"set ${name} = {value}")


CudaThreads()
CudaThread()
