"""What a run does with each file: one class per task."""

from typing import Any

from dynenc.batch.settings import TaskName
from dynenc.batch.tasks.base import Task
from dynenc.batch.tasks.images import DecodeTask, EncodeTask
from dynenc.batch.tasks.latents import ExportTask, ImportTask
from dynenc.batch.tasks.roundtrip import RoundtripTask

TASKS: dict[TaskName, type[Task[Any]]] = {
    "encode": EncodeTask,
    "decode": DecodeTask,
    "roundtrip": RoundtripTask,
    "export": ExportTask,
    "import": ImportTask,
}
