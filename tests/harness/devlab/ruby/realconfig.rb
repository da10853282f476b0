# frozen_string_literal: true

# What Vagrant's own configuration class of a provider makes of our settings, as JSON: complaints
# of it, and what it will tell the provider. Usage: realconfig.rb PROVIDER VAGRANT-FOLDER MACHINES

require "json"
begin
  require "vagrant"
  require "vagrant/util/platform"
rescue LoadError => e
  puts JSON.generate({ "missing" => e.message })
  exit
end

provider, folder, machines = ARGV
require File.join(folder, "machines")
require File.join(folder, "providers")
require Vagrant.source_root.join("plugins/providers", provider, "config")

# What is set on the machine around the provider, `vagrant validate` looks at.
class Anything < BasicObject
  def method_missing(*) = self
  def respond_to_missing?(*) = true
end

namespace = { "hyperv" => "HyperV", "virtualbox" => "ProviderVirtualBox" }.fetch(provider)
found = LcowLab::Machines.load(machines).map do |machine|
  settings = VagrantPlugins.const_get(namespace)::Config.new
  LcowLab::Providers.send(provider, settings, Anything.new, machine)
  settings.finalize!
  told = settings.instance_variables.to_h { |name| [name.to_s.delete("@"), settings.instance_variable_get(name)] }
  { "name" => machine.name, "complaints" => settings._detected_errors, "told" => told.inspect }
end
puts JSON.generate({ "machines" => found })
