# Lets what runs inside of a virtual machine use MAC addresses of its own. Runs on the Hyper-V host.
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [string] $VMName
)

Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

Get-VMNetworkAdapter -VMName $VMName | Set-VMNetworkAdapter -MacAddressSpoofing On
