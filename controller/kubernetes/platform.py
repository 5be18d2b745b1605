# SPDX-License-Identifier: Apache-2.0
"""A cluster's API as what the controller stands on."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from pathlib import Path

from controller.ca.issue import Authority
from controller.ca.store import StoreError
from controller.kubernetes.ca_secret import SECRET, SecretGuard, open_secret_authority
from controller.kubernetes.kinds import kinds
from controller.kubernetes.lease import Leadership
from controller.kubernetes.token_review import TokenReviewer
from controller.kubernetes.writer import Writer
from controller.platform import Platform
from mesh.config.kube_api import AnswerError, KubeApi, UnreachableError
from mesh.config.kube_client import KubeClient
from mesh.config.kube_reflector import backoff_s
from mesh.config.kubernetes import KubernetesSource
from mesh.runtime.clock import Clock

_log = logging.getLogger("controller.kubernetes")


async def open_cluster(
    kubeconfig: Path | None, *, namespace: str, trust_domain: str, clock: Clock
) -> Platform:
    """Stand on a cluster; waits for its API server as long as it takes.

    Args:
        kubeconfig: None: the service account of the pod that we run in.
        namespace: of the Secret and the Lease.
        trust_domain: of a root that has to be made.
        clock: what time it is.

    Raises:
        ConfigError: where the API server is cannot be told.
        StoreError: the authority's Secret cannot be had or used; says what to do.
    """
    client = await KubeClient.open(kubeconfig, user_agent="ambit-controller")
    try:
        authority = await _authority(client, namespace, trust_domain, clock)
    except BaseException:
        await client.close()
        raise
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{os.getpid()}"
    leadership = Leadership(client, namespace, identity, clock)
    writer = Writer(client, leadership, clock)
    source = KubernetesSource(client, kinds(namespace), clock=clock)
    _log.info("on the cluster of %s as replica %s", client.server, identity)
    return Platform(
        source=source,
        tokens=TokenReviewer(client, clock),
        authority=authority,
        output=writer,
        loops={
            "the lease cannot be held": leadership.run,
            "nothing can be written": writer.run,
            "the authority is another": SecretGuard(client, namespace, authority).run,
        },
        describe=source.describe,
        close=client.close,
    )


async def _authority(api: KubeApi, namespace: str, trust_domain: str, clock: Clock) -> Authority:
    failures = 0
    chance = random.Random()
    while True:
        try:
            return await open_secret_authority(api, namespace, trust_domain, clock.wall())
        except UnreachableError as error:
            failures += 1
            _log.warning("%s; retrying", error)
            await asyncio.sleep(backoff_s(failures, chance))
        except AnswerError as error:
            advice = "create the namespace first"
            if error.status in (401, 403):
                advice = f"the account needs the verbs create on secrets and get on secret {SECRET}"
            raise StoreError(f"Secret {namespace}/{SECRET}: {error}; {advice}") from error
