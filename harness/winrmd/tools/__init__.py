"""The console programs that a pretend host answers itself, because they change its state."""

from harness.winrmd.tools.console import Answer, Tool
from harness.winrmd.tools.shims import ToolServer
from harness.winrmd.tools.table import TOOLS, host_programs

__all__ = ["TOOLS", "Answer", "Tool", "ToolServer", "host_programs"]
