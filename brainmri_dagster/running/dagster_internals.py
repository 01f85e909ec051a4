"""Everything used of Dagster's private modules (1.13): the one file to check before upgrading Dagster."""

from __future__ import annotations

from dagster._check import CheckError
from dagster._core.definitions.asset_selection import AssetSelection
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.errors import DagsterPipesExecutionError, DagsterUserCodeUnreachableError
from dagster._core.events import RunFailureReason
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.executor import in_process
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from dagster._core.storage.runs.sqlite import SqliteRunStorage
from dagster._core.storage.tags import BACKFILL_ID_TAG, WILL_RETRY_TAG
from dagster._daemon.controller import get_daemon_statuses
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster._utils.interrupts import pop_captured_interrupt

__all__ = [
    "BACKFILL_ID_TAG",
    "BULK_ACTION_TERMINAL_STATUSES",
    "WILL_RETRY_TAG",
    "AssetGraph",
    "AssetGraphSubset",
    "AssetKeyPartitionKey",
    "AssetPartitionStatus",
    "AssetSelection",
    "BulkActionStatus",
    "CheckError",
    "CheckRunHealthResult",
    "DagsterPipesExecutionError",
    "DagsterUserCodeUnreachableError",
    "ErrorSource",
    "ExecuteRunArgs",
    "InstanceConcurrencyContext",
    "LaunchRunContext",
    "PartitionBackfill",
    "RunFailureReason",
    "SqlEventLogStorage",
    "SqliteRunStorage",
    "WorkerStatus",
    "get_daemon_statuses",
    "in_process",
    "pop_captured_interrupt",
    "unpack_value",
]
