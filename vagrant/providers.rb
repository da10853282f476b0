# frozen_string_literal: true

module LcowLab
  # What each provider needs so that Hyper-V runs inside of the machine.
  module Providers
    # Pinned, so that two people have the same Windows. The one for libvirt and Windows Server 2022
    # was installed under BIOS.
    BOXES = {
      "2022" => {
        libvirt: ["peru/windows-server-2022-standard-x64-eval", "20231201.01"],
        other: ["gusztavvargadr/windows-server-2022-standard-core", "2607.0.0"]
      },
      "2025" => {
        other: ["gusztavvargadr/windows-server-2025-standard-core", "2601.0.0"]
      }
    }.freeze
    ALL = %i[libvirt hyperv vmware_desktop virtualbox].freeze
    # Without these a Windows guest is slow, or loses time while it runs a hypervisor itself.
    ENLIGHTENMENTS = %w[relaxed vapic vpindex synic stimer].freeze
    UEFI_LOADER = "/usr/share/OVMF/OVMF_CODE.fd"

    module_function

    def configure(node, machine)
      ALL.each do |provider|
        node.vm.provider(provider) do |settings, override|
          box(override, machine, provider)
          send(provider, settings, override, machine)
        end
      end
      allow_mac_spoofing(node, machine)
    end

    # The box of HV_BOX is taken in whatever version there is, unless HV_BOX_VERSION says which.
    def box(override, machine, provider)
      boxes = BOXES.fetch(machine.windows)
      name, version = boxes[provider] || boxes.fetch(:other)
      name, version = ENV["HV_BOX"], nil if given("HV_BOX")
      version = ENV["HV_BOX_VERSION"] if given("HV_BOX_VERSION")
      override.vm.box = name
      override.vm.box_version = version if version
    end

    def libvirt(settings, _override, machine)
      settings.driver = "kvm"
      settings.cpus = machine.cpus
      settings.memory = machine.memory_mib
      settings.nested = true
      settings.machine_type = "q35"
      processor(settings)
      ENLIGHTENMENTS.each { |name| settings.hyperv_feature(name: name, state: "on") }
      settings.hyperv_feature(name: "spinlocks", state: "on", retries: "8191")
      # stimer works with this clock alone.
      settings.clock_timer(name: "hypervclock", present: "yes")
      # Windows does not change from one firmware to the other: take the one that the box has.
      settings.loader = ENV["HV_UEFI_LOADER"] || UEFI_LOADER if machine.firmware == "uefi"
    end

    # With TSX visible Hyper-V does not start inside of some processors (an automatic-repair loop).
    # The provider switches features off only in a named model: HV_CPU_MODEL, of those that
    # `virsh cpu-models x86_64` lists. Without one the guest sees the processor as it is.
    def processor(settings)
      unless given("HV_CPU_MODEL")
        settings.cpu_mode = "host-passthrough"
        return
      end
      settings.cpu_mode = "custom"
      settings.cpu_model = ENV["HV_CPU_MODEL"]
      %w[rtm hle].each { |name| settings.cpu_feature(name: name, policy: "disable") }
    end

    def hyperv(settings, override, machine)
      settings.vmname = vm_name(machine)
      settings.cpus = machine.cpus
      # No maxmemory: it turns dynamic memory on, with which nested Hyper-V does not start.
      settings.memory = machine.memory_mib
      settings.enable_virtualization_extensions = true
      settings.enable_checkpoints = true
      settings.enable_automatic_checkpoints = false
      settings.linked_clone = true
      settings.ip_address_timeout = 300
      # Named, because Vagrant asks otherwise.
      override.vm.network "public_network", bridge: ENV["HV_SWITCH"] || "Default Switch"
    end

    # Impossible where the outer host runs Hyper-V or virtualisation-based security.
    def vmware_desktop(settings, override, machine)
      settings.gui = false
      settings.linked_clone = true
      settings.vmx["numvcpus"] = machine.cpus.to_s
      settings.vmx["memsize"] = machine.memory_mib.to_s
      settings.vmx["vhv.enable"] = "TRUE"
      settings.vmx["vpmc.enable"] = "FALSE"
      forward_https(override)
    end

    # For WinRM and provisioning alone: nested Hyper-V does not boot Windows Server 2025 in
    # VirtualBox 7.2.2 (VirtualBox#270), and there is none where the outer host runs Hyper-V.
    def virtualbox(settings, override, machine)
      settings.gui = false
      settings.linked_clone = true
      settings.cpus = machine.cpus
      settings.memory = machine.memory_mib
      settings.customize ["modifyvm", :id, "--nested-hw-virt", "on"]
      settings.customize ["modifyvm", :id, "--paravirtprovider", "hyperv"]
      forward_https(override)
    end

    # These two sit behind NAT: nothing but loopback reaches the forwarded port.
    def forward_https(override)
      override.vm.network "forwarded_port", guest: 5986, host: 55_986, host_ip: "127.0.0.1",
                                            id: "winrm-ssl", auto_correct: true
    end

    # No option of Vagrant's: containers and virtual machines inside need it to reach the network.
    def allow_mac_spoofing(node, machine)
      script = File.join(__dir__, "allow-mac-spoofing.ps1")
      node.trigger.after :up do |trigger|
        trigger.name = "MAC address spoofing"
        trigger.ruby do |_env, running|
          next unless running.provider_name == :hyperv

          system("powershell.exe", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass",
                 "-File", script, "-VMName", LcowLab::Providers.vm_name(machine), exception: true)
        end
      end
    end

    def vm_name(machine)
      "lcowlab-#{machine.name}"
    end

    def given(variable)
      !ENV[variable].to_s.empty?
    end
  end
end
