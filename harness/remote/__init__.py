"""Windows hosts over WinRM: commands, PowerShell, files, and what each can fail with."""
