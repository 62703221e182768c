"""The remote procedures of the contract, from its descriptors."""

from types import ModuleType

from google.protobuf import message_factory, wrappers_pb2

from twofold._operations import Rpc
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2


def _rpc(module: ModuleType, service: str, method: str) -> Rpc:
    descriptor = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    return Rpc(
        path=f"/{descriptor.containing_service.full_name}/{method}",
        serialize=message_factory.GetMessageClass(descriptor.input_type).SerializeToString,
        deserialize=message_factory.GetMessageClass(descriptor.output_type).FromString,
        streams_requests=descriptor.client_streaming,
        streams_responses=descriptor.server_streaming,
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

# grpc.health.v1 without a dependency on it: HealthCheckRequest is encoded like a StringValue, because both have one string in
# field 1, and HealthCheckResponse like an Int32Value.
CHECK_HEALTH = Rpc(
    path="/grpc.health.v1.Health/Check",
    serialize=wrappers_pb2.StringValue.SerializeToString,
    deserialize=wrappers_pb2.Int32Value.FromString,
)
