# SPDX-License-Identifier: Apache-2.0
"""Load every program with bcc itself and print name -> the kernel's tag: run by the system's interpreter."""

import json

from bpf import abi, sources, syscall
from bpf import compile as compiler


def main() -> None:
    bcc = compiler._import_bcc()
    with compiler._kernel_headers():
        module = compiler._compile(bcc)
    tags = {}
    for spec in abi.PROGRAMS:
        if spec.type in (abi.ProgramType.SOCK_OPS, abi.ProgramType.CGROUP_SOCK):
            function = module.load_func(spec.name, int(spec.type))
        else:
            function = module.load_func(spec.name, int(spec.type), attach_type=int(spec.attach))
        tags[spec.name] = syscall.program_tag(function.fd)[1]
    print(json.dumps({"tags": tags, "source": sources.source_hash()}))


main()
