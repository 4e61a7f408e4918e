"""What an error of an S3 store means: whether it may pass, and what to do about it."""

from __future__ import annotations

_MISSING_SECONDS = 3.0  # a store that has just come back may not see all of its objects at once
_TRANSIENT_CODES = {
    "RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
    "InternalError", "ServiceUnavailable", "RequestLimitExceeded", "BandwidthLimitExceeded", "IncompleteBody",
}  # fmt: skip
_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}

_FORBIDDEN = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may use this bucket"
_REMEDIES = {
    "404": "check the name; the bucket or the object is not there",
    "NoSuchBucket": "make the bucket first, or name another",
    "NoSuchKey": "check the name; restore the object, or encode the dataset again",
    "403": _FORBIDDEN,
    "AccessDenied": _FORBIDDEN,
    "InvalidAccessKeyId": _FORBIDDEN,
    "SignatureDoesNotMatch": _FORBIDDEN,
    "RequestTimeTooSkewed": "set the clock of this machine",
}
_UNREACHABLE = (
    "check that the store is up and S3_ENDPOINT_URL, the AWS_* variables and the bucket are right; "
    "a longer outage is waited for with data.retry_seconds, or store.retry_seconds for clips"
)


class StalledError(OSError):
    """A connection that is open and delivers next to nothing."""


class TruncatedError(OSError):
    """A body that ended before its announced length."""


def _cause(error: Exception) -> Exception:
    """What an error of boto3's transfers was made of."""
    from boto3.exceptions import Boto3Error

    inner = error.__context__
    return _cause(inner) if isinstance(error, Boto3Error) and isinstance(inner, Exception) else error


def error_code(error: Exception) -> str:
    """The S3 code of a ClientError ("NoSuchKey", "503"), or the empty string."""
    response = getattr(_cause(error), "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def is_missing(error: Exception) -> bool:
    """True for the answer that an object is not there."""
    return error_code(error) in _MISSING_CODES


def patience(error: Exception) -> float:
    """For how many seconds after a first failure this error may pass by itself; 0 for one that never does."""
    return _patience(error, 0.0)


def patience_for_known(error: Exception) -> float:
    """The same for an object that is known to be there: its absence may pass as well."""
    return _patience(error, _MISSING_SECONDS)


def _patience(error: Exception, missing_seconds: float) -> float:
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    error = _cause(error)
    if isinstance(error, exceptions.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= 500 or status in (408, 429) or error_code(error) in _TRANSIENT_CODES:
            return float("inf")
        return missing_seconds if is_missing(error) else 0.0
    passing = (
        exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError,
        exceptions.ResponseStreamingError, exceptions.MetadataRetrievalError, exceptions.CredentialRetrievalError,
        ResponseParserError, HTTPError, StalledError, TruncatedError,
    )  # fmt: skip
    return float("inf") if isinstance(error, passing) else 0.0


def remedy(error: Exception) -> str:
    """What the user can do."""
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(_cause(error), NoCredentialsError | PartialCredentialsError):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return _REMEDIES.get(error_code(error), _UNREACHABLE)
