"""WS-Management faults: what Windows answers when it refuses a request, with its codes and texts.

Sources: recorded exchanges with Windows Server 2008 R2 to 2019 (pypsrp's test suite), wsmerror.h
for the numbers. A fault is sent as HTTP 500 with a SOAP fault body; `soap.fault_body` writes it.
"""

from __future__ import annotations

from typing import Final

TIMED_OUT: Final = 2150858793
INVALID_SELECTORS: Final = 2150858843
INVALID_ENUMERATION_CONTEXT: Final = 2150858770
INVALID_HEADER: Final = 2150858767
ACTION_NOT_SUPPORTED: Final = 2150858754
INVALID_RESOURCE_URI: Final = 2150858752
ENVELOPE_TOO_LARGE: Final = 2150858961  # 0x803380D1
MAX_SHELLS_PER_USER: Final = 2150859173  # 0x803381A5
MAX_OPERATIONS_PER_USER: Final = 2150859174  # 0x803381A6
MAX_SHELL_USERS: Final = 2150859179  # 0x803381AB
MAX_PROCESSES_PER_SHELL: Final = 2150859241  # 0x803381E9
INVALID_PARAMETER: Final = 87
PIPE_CLOSING: Final = 232
FILE_NOT_FOUND: Final = 2147942402  # 0x80070002
DIRECTORY_INVALID: Final = 2147942667  # 0x8007010B
ALREADY_EXISTS: Final = 183
ACCESS_DENIED: Final = 5
OPERATION_ABORTED: Final = 995

_DETAIL = "http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/"
PROVIDER_FAULT: Final = (
    '<f:ProviderFault provider="Shell cmd plugin" path="%systemroot%\\system32\\winrscmd.dll">'
    "The parameter is incorrect. </f:ProviderFault>"
)


class WsmanFault(Exception):  # noqa: N818 - the protocol's own word for it
    """A refused request: SOAP `value` and `subcode`, the WS-Man `code` (unsigned), and the texts.

    `message_xml`, where given, is XML that stands in place of `message`.
    """

    def __init__(
        self,
        subcode: str,
        code: int,
        reason: str,
        *,
        value: str = "s:Receiver",
        message: str = "",
        detail: str = "",
        message_xml: str = "",
    ) -> None:
        super().__init__(f"{subcode} {code}: {message or reason}")
        self.value = value
        self.subcode = subcode
        self.code = code
        self.reason = reason
        self.message = message or reason
        self.detail = detail
        self.message_xml = message_xml


def timed_out() -> WsmanFault:
    """Return the answer to an operation with nothing to say before its OperationTimeout."""
    return WsmanFault(
        "w:TimedOut",
        TIMED_OUT,
        "The WS-Management service cannot complete the operation within the time specified in "
        "OperationTimeout.  ",
    )


def invalid_selectors(message: str) -> WsmanFault:
    """Return the fault for a selector that names nothing."""
    return WsmanFault(
        "w:InvalidSelectors",
        INVALID_SELECTORS,
        "The WS-Management service cannot process the request because the request contained "
        "invalid selectors for the resource. ",
        value="s:Sender",
        message=message,
        detail=_DETAIL + "UnexpectedSelectors",
    )


def shell_missing(shell_id: str) -> WsmanFault:
    """Return the fault for a shell that is gone or belongs to another user."""
    return invalid_selectors(
        f"The request for the Windows Remote Shell with ShellId {shell_id} failed because the "
        "shell was not found on the server. Possible causes are: the specified ShellId is "
        "incorrect or the shell no longer exists on the server. Provide the correct ShellId or "
        "create a new shell and retry the operation. "
    )


def command_missing() -> WsmanFault:
    """Return the fault for a command id that names nothing in its shell."""
    return invalid_selectors(
        "The Windows Remote Shell received a request to perform an operation on a command "
        "identifier that does not exist. Either the command has completed execution or the "
        "client specified an invalid command identifier. "
    )


def invalid_header(message: str) -> WsmanFault:
    """Return the fault for a SOAP header that cannot be used."""
    return WsmanFault(
        "a:InvalidMessageInformationHeader",
        INVALID_HEADER,
        "The WS-Management service cannot process the request. The request contains one or more "
        "invalid SOAP headers. ",
        value="s:Sender",
        message=message,
    )


def invalid_parameter() -> WsmanFault:
    """Return winrscmd.dll's answer to a request that lacks what it needs (a command id)."""
    return WsmanFault(
        "w:InvalidParameter",
        INVALID_PARAMETER,
        "The parameter is incorrect. ",
        value="s:Sender",
        detail=_DETAIL + "InvalidValue",
        message_xml=PROVIDER_FAULT,
    )


def action_not_supported(action: str) -> WsmanFault:
    """Return the fault for an action that the resource does not know."""
    return WsmanFault(
        "a:ActionNotSupported",
        ACTION_NOT_SUPPORTED,
        "The WS-Management service cannot process the request because the request contained an "
        f"invalid action URI: {action}. ",
        value="s:Sender",
    )


def invalid_resource(uri: str) -> WsmanFault:
    """Return the fault for a resource URI that no plug-in serves."""
    return WsmanFault(
        "a:DestinationUnreachable",
        INVALID_RESOURCE_URI,
        "The WS-Management service cannot process the request. The resource URI is missing or "
        f"it has an incorrect format: {uri}. Check the documentation or use the following "
        "command for information on how to construct a resource URI: winrm help uris. ",
        value="s:Sender",
        detail=_DETAIL + "InvalidResourceURI",
    )


def too_many_shells(limit: int) -> WsmanFault:
    """Return the fault of MaxShellsPerUser."""
    return WsmanFault(
        "w:InternalError",
        MAX_SHELLS_PER_USER,
        "The WS-Management service cannot process the request. This user is allowed a maximum "
        f"number of {limit} concurrent shells, which has been exceeded. Close existing shells or "
        "raise the quota for this user. ",
    )


def too_many_users(limit: int) -> WsmanFault:
    """Return the fault of MaxConcurrentUsers."""
    return WsmanFault(
        "w:InternalError",
        MAX_SHELL_USERS,
        "The WS-Management service cannot process the request. The maximum number of users "
        f"executing shell operations has been exceeded ({limit}). Retry after sometime or raise "
        "the quota for concurrent shell users. ",
    )


def already_exists() -> WsmanFault:
    """Return the fault for a ShellId or CommandId that is taken."""
    return WsmanFault(
        "w:AlreadyExists",
        ALREADY_EXISTS,
        "Cannot create a file when that file already exists. ",
        value="s:Sender",
    )


def too_many_operations(limit: int) -> WsmanFault:
    """Return the fault of MaxConcurrentOperationsPerUser."""
    return WsmanFault(
        "w:InternalError",
        MAX_OPERATIONS_PER_USER,
        "The WS-Management service cannot process the request. This user is allowed a maximum "
        f"number of {limit} concurrent operations, which has been exceeded. Close existing "
        "operations for this user, or raise the quota for this user. ",
    )


def too_many_processes(limit: int) -> WsmanFault:
    """Return the fault of MaxProcessesPerShell."""
    return WsmanFault(
        "w:InternalError",
        MAX_PROCESSES_PER_SHELL,
        "The WS-Management service cannot process the request. The maximum number of concurrent "
        f"commands per shell is {limit}, which has been exceeded. Retry your request later or "
        "raise the Maximum Commands per Shell quota. ",
    )


def invalid_enumeration_context() -> WsmanFault:
    """Return the fault for an enumeration that is over or never was."""
    return WsmanFault(
        "n:InvalidEnumerationContext",
        INVALID_ENUMERATION_CONTEXT,
        "The WS-Management service cannot process the request because the supplied enumeration "
        "context is not valid. It might have expired. ",
    )


def reply_too_large(limit: int) -> WsmanFault:
    """Return the fault for a reply that does not fit the client's MaxEnvelopeSize (bytes)."""
    return WsmanFault(
        "w:EncodingLimit",
        ENVELOPE_TOO_LARGE,
        f"The size of the response exceeds the maximum envelope size of {limit} octets. ",
        detail=_DETAIL + "MaxEnvelopeSizeExceeded",
    )


def pipe_closing() -> WsmanFault:
    """Return the fault for input to a process that reads no more."""
    return WsmanFault("w:InternalError", PIPE_CLOSING, "The pipe is being closed. ")


def file_not_found() -> WsmanFault:
    """Return the fault for a program that is missing when no cmd.exe stands between."""
    return WsmanFault(
        "w:InternalError", FILE_NOT_FOUND, "The system cannot find the file specified. "
    )


def directory_invalid() -> WsmanFault:
    """Return the fault for a working directory that does not exist."""
    return WsmanFault("w:InternalError", DIRECTORY_INVALID, "The directory name is invalid. ")


def access_denied() -> WsmanFault:
    """Return the fault for a user who may not do this."""
    return WsmanFault("w:AccessDenied", ACCESS_DENIED, "Access is denied. ", value="s:Sender")


def operation_aborted() -> WsmanFault:
    """Return the fault for an operation that ended with its shell."""
    return WsmanFault(
        "w:InternalError",
        OPERATION_ABORTED,
        "The I/O operation has been aborted because of either a thread exit or an application "
        "request. ",
    )
