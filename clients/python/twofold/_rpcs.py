"""Every remote procedure that the client calls, from the descriptors of the contract."""

from types import ModuleType

from google.protobuf import message_factory, wrappers_pb2

from twofold._operations import Rpc
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2


def _rpc(file: ModuleType, service: str, method: str) -> Rpc:
    described = file.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    return Rpc(
        path=f"/{described.containing_service.full_name}/{method}",
        encode=message_factory.GetMessageClass(described.input_type).SerializeToString,
        decode=message_factory.GetMessageClass(described.output_type).FromString,
        streams_requests=described.client_streaming,
        streams_responses=described.server_streaming,
    )


PREDICT = _rpc(inference_pb2, "InferenceService", "Predict")
PREDICT_STREAM = _rpc(inference_pb2, "InferenceService", "PredictStream")
EMBED = _rpc(inference_pb2, "InferenceService", "Embed")
GET_MODEL = _rpc(inference_pb2, "InferenceService", "GetModel")

ADAPT = _rpc(adaptation_pb2, "AdaptationService", "Adapt")
UPLOAD_DATASET = _rpc(adaptation_pb2, "AdaptationService", "UploadDataset")
GET_JOB = _rpc(adaptation_pb2, "AdaptationService", "GetJob")
LIST_JOBS = _rpc(adaptation_pb2, "AdaptationService", "ListJobs")
WATCH_JOB = _rpc(adaptation_pb2, "AdaptationService", "WatchJob")
CANCEL_JOB = _rpc(adaptation_pb2, "AdaptationService", "CancelJob")
GET_REPORT = _rpc(adaptation_pb2, "AdaptationService", "GetReport")

GET_CHECKPOINT = _rpc(checkpoints_pb2, "CheckpointService", "GetCheckpoint")
LIST_CHECKPOINTS = _rpc(checkpoints_pb2, "CheckpointService", "ListCheckpoints")
LIST_ALIAS_CHANGES = _rpc(checkpoints_pb2, "CheckpointService", "ListAliasChanges")
PROMOTE_CHECKPOINT = _rpc(checkpoints_pb2, "CheckpointService", "PromoteCheckpoint")
ROLL_BACK = _rpc(checkpoints_pb2, "CheckpointService", "RollBack")
DELETE_CHECKPOINT = _rpc(checkpoints_pb2, "CheckpointService", "DeleteCheckpoint")

# On the wire a HealthCheckRequest is a message with one string, and its response one with one number, both in field 1.
# So are these two, and they spare a dependency.
CHECK_HEALTH = Rpc(
    path="/grpc.health.v1.Health/Check",
    encode=wrappers_pb2.StringValue.SerializeToString,
    decode=wrappers_pb2.Int32Value.FromString,
)
