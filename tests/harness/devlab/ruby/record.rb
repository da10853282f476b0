# frozen_string_literal: true

# Loads a Vagrantfile with a `Vagrant.configure` that writes down every call, for one provider, and
# prints the calls as JSON: [[path, positional arguments, named arguments], …].

require "json"

CALLS = []
PROVIDER = ARGV.fetch(1).to_sym
Running = Struct.new(:provider_name)

# Answers to every method with another recorder, and runs blocks as that provider would.
class Recorder < BasicObject
  def initialize(path)
    @path = path
  end

  def method_missing(name, *arguments, **named, &block)
    here = "#{@path}.#{name}"
    ::CALLS << [here, arguments, named]
    return ::Recorder.new(here) if block.nil?

    case name
    when :provider
      return unless arguments.first == ::PROVIDER

      block.call(::Recorder.new(arguments.first.to_s), ::Recorder.new("override"))
    when :define then block.call(::Recorder.new(arguments.first))
    when :ruby then block.call(nil, ::Running.new(::PROVIDER))
    else block.call(::Recorder.new(here))
    end
  end

  def respond_to_missing?(_name, _private = false)
    true
  end
end

# What a trigger would run on the machine of the user.
module Kernel
  remove_method :system
  def system(*arguments, **named)
    CALLS << ["system", arguments, named]
    true
  end
end

module Vagrant
  def self.configure(version)
    CALLS << ["configure", [version], {}]
    yield Recorder.new("config")
  end
end

load File.expand_path(ARGV.fetch(0))
puts JSON.generate(CALLS)
