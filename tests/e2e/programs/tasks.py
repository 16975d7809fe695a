"""A program whose tasks do what their spec says, and note in a file that they did.

Program args: `tasks`, a list of specs, or `n` times `spec`; `log`, the file of notes; `gate`, a
file that tasks with {"do": "wait"} wait for. A spec's `id` names its task, `limits` are keyword
arguments of its TaskDefinition.
"""

import ctypes
import os
import subprocess
import sys
import time

from jobflow_worker import NonRetryable, TaskDefinition, TaskProgram, current_attempt


class Tasks(TaskProgram):
    def generate_tasks(self):
        args = self.program_args
        specs = args.get("tasks") or [args.get("spec", {})] * args.get("n", 0)
        for number, spec in enumerate(specs):
            name = spec.get("id", f"t{number:05}")
            yield TaskDefinition(name, {"i": number, **spec}, **spec.get("limits", {}))
        if args.get("raise_at_end"):
            raise ValueError("the list of inputs broke off")

    def execute_task(self, spec, progress_cb):
        self.note("start")
        result = getattr(self, spec.get("do", "nothing"))(spec, progress_cb)
        self.note("end")
        return result

    def note(self, word):
        """One line, by one write: whole lines even if many append."""
        path = self.program_args.get("log")
        if path is None:
            return
        me = current_attempt()
        line = f"{word} {me.task_id} {me.attempt} {me.worker_id} {os.getpid()}\n"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, line.encode())
        os.close(fd)

    def nothing(self, spec, progress_cb):
        return {"i": spec["i"]}

    def wait(self, spec, progress_cb):
        progress_cb(0.25, {"stage": "waiting"})
        while not os.path.exists(self.program_args["gate"]):
            time.sleep(0.02)
        return {"i": spec["i"]}

    def talk(self, spec, progress_cb):
        print(f"before the gate, attempt {current_attempt().attempt}", flush=True)
        self.wait(spec, progress_cb)
        print("after the gate")
        return {}

    def sleep(self, spec, progress_cb):
        time.sleep(spec["s"])
        return {}

    def error(self, spec, progress_cb):
        print("printed before the error")
        raise ValueError(f"bad input {spec['i']}")

    def never(self, spec, progress_cb):
        raise NonRetryable("no use to try again")

    def once(self, spec, progress_cb):
        if current_attempt().attempt == 1:
            raise OSError("only the first time")
        return {"attempt": current_attempt().attempt}

    def os_exit(self, spec, progress_cb):
        os._exit(7)

    def sys_exit(self, spec, progress_cb):
        sys.exit(3)

    def segfault(self, spec, progress_cb):
        print("last words", flush=True)
        ctypes.string_at(0)

    def unencodable(self, spec, progress_cb):
        return {"x": {1, 2}}

    def big(self, spec, progress_cb):
        return {"text": "x" * spec["bytes"]}

    def memory(self, spec, progress_cb):
        block = bytearray(spec["bytes"])
        time.sleep(60)
        return {"bytes": len(block)}

    def family(self, spec, progress_cb):
        """A task with a process of its own, which must not outlive it."""
        subprocess.run(["sleep", "60"], check=True)
        return {}
