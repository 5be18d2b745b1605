# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in this package, one class per remedy."""


class BpfError(Exception):
    """A bpf(2) call, a pin or a program failed; the text says which, why and what to do."""


class KernelError(BpfError):
    """bpf(2) refused; the text ends with the errno's."""


class NotLoadedError(BpfError):
    """The node's programs and maps are not pinned where they were looked for."""


class SchemaError(BpfError):
    """Pinned maps were made for another layout or size than this version's."""


class LimitError(BpfError):
    """A configured or fixed limit is reached; the text names it and its value."""


class CompileError(BpfError):
    """bcc is missing, or does not compile the programs, or lays them out differently."""
