# frozen_string_literal: true

# Reads machines from standard input with the reader of the Vagrantfile, and prints them as JSON.

require "json"
require File.expand_path(ARGV.fetch(0))

begin
  machines = LcowLab::Machines.parse($stdin.read)
  puts JSON.generate(machines.to_h { |machine| [machine.name, machine.to_h.except(:name)] })
rescue LcowLab::MachinesError => e
  warn e.message
  exit 1
end
