# Opens WinRM over HTTPS on this Windows host and prints the pin of its certificate for the
# inventory. May be run again: it changes what is not yet so, and nothing else.
#
#   powershell -ExecutionPolicy Bypass -File bootstrap-winrm.ps1 [-AllowFrom 192.0.2.10]
[CmdletBinding()]
param(
    # Names that the certificate carries; clients that pin it do not look at them.
    [string[]] $DnsName = @($env:COMPUTERNAME, 'localhost'),

    [ValidateRange(1, 65535)]
    [int] $Port = 5986,

    # Who may connect, as New-NetFirewallRule takes it: addresses, networks, LocalSubnet, Any.
    [string[]] $AllowFrom = @('LocalSubnet'),

    # Take this certificate of Cert:\LocalMachine\My in place of one of our own.
    [string] $Thumbprint = '',

    # Local administrators come in with all their rights. Not needed for domain accounts.
    [switch] $LocalAdministrators
)

Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

$Store = 'Cert:\LocalMachine\My'
$FriendlyName = 'lcowlab WinRM'
$RuleName = 'lcowlab-winrm-https'
$Listeners = 'WSMan:\localhost\Listener'

function Test-Administrator {
    $identity = [Security.Principal.WindowsIdentity]::GetCurrent()
    $principal = New-Object Security.Principal.WindowsPrincipal($identity)
    $principal.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)
}

function Get-LabCertificate {
    if ($Thumbprint) {
        return Get-Item -LiteralPath "$Store\$Thumbprint"
    }
    $soon = (Get-Date).AddDays(30)
    $usable = @(Get-ChildItem -LiteralPath $Store | Where-Object {
            $_.FriendlyName -eq $FriendlyName -and $_.HasPrivateKey -and $_.NotAfter -gt $soon
        } | Sort-Object -Property NotAfter -Descending)
    if ($usable.Count -gt 0) {
        return $usable[0]
    }
    New-SelfSignedCertificate -DnsName $DnsName -CertStoreLocation $Store `
        -FriendlyName $FriendlyName -KeyExportPolicy NonExportable -HashAlgorithm SHA256 `
        -NotAfter (Get-Date).AddYears(5)
}

function Get-Setting {
    param([string] $Listener, [string] $Name)
    (Get-Item -LiteralPath "$Listeners\$Listener\$Name").Value
}

function Set-Listener {
    param([string] $Wanted)
    foreach ($listener in @(Get-ChildItem -LiteralPath $Listeners)) {
        if ($listener.Keys -notcontains 'Transport=HTTPS') {
            continue
        }
        $same = (Get-Setting $listener.Name 'CertificateThumbprint') -eq $Wanted -and
            [int](Get-Setting $listener.Name 'Port') -eq $Port
        if ($same -and $listener.Keys -contains 'Address=*') {
            return
        }
        Remove-Item -LiteralPath "$Listeners\$($listener.Name)" -Recurse -Force
    }
    New-Item -Path $Listeners -Transport HTTPS -Address '*' -Port $Port `
        -CertificateThumbPrint $Wanted -Force | Out-Null
}

function Set-Firewall {
    Get-NetFirewallRule -Name $RuleName -ErrorAction SilentlyContinue | Remove-NetFirewallRule
    New-NetFirewallRule -Name $RuleName -DisplayName 'lcowlab: WinRM over HTTPS' `
        -Direction Inbound -Action Allow -Protocol TCP -LocalPort $Port -Profile Any `
        -RemoteAddress $AllowFrom | Out-Null
}

function Set-ServiceSetting {
    param([string] $Path, [string] $Value)
    if ((Get-Item -LiteralPath $Path).Value -ne $Value) {
        Set-Item -LiteralPath $Path -Value $Value -Force
    }
}

if (-not (Test-Administrator)) {
    throw 'Run this as an administrator: it changes WinRM and the firewall.'
}

Set-Service -Name WinRM -StartupType Automatic
Start-Service -Name WinRM

$certificate = Get-LabCertificate
Set-Listener $certificate.Thumbprint
Set-ServiceSetting 'WSMan:\localhost\Service\AllowUnencrypted' 'false'
Set-ServiceSetting 'WSMan:\localhost\Service\Auth\Basic' 'false'
Set-ServiceSetting 'WSMan:\localhost\Service\Auth\Negotiate' 'true'
Set-Firewall

if ($LocalAdministrators) {
    # Over the network, local accounts but the built-in one lose their rights without it.
    New-ItemProperty -Path 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System' `
        -Name LocalAccountTokenFilterPolicy -PropertyType DWord -Value 1 -Force | Out-Null
}

$sha256 = [Security.Cryptography.SHA256]::Create()
try {
    $digest = [BitConverter]::ToString($sha256.ComputeHash($certificate.RawData))
}
finally {
    $sha256.Dispose()
}
Write-Output "pin:sha256:$($digest.Replace('-', '').ToLowerInvariant())"
