"""A WinRM endpoint where there is no Windows: real sockets, real authentication, real processes."""
