# frozen_string_literal: true

require "did_you_mean"

module LcowLab
  # A mistake in the file of machines: where it is and what belongs there.
  class MachinesError < StandardError; end

  Machine = Struct.new(:name, :windows, :cpus, :memory_mib, :firmware, :slots, :tags,
                       keyword_init: true) do
    # Windows takes 15 characters as a computer name, letters, digits and '-'.
    def hostname
      name.gsub(/[^A-Za-z0-9-]/, "-")[0, 15].sub(/-+\z/, "")
    end
  end

  # Reads the machines. Vagrant brings no TOML reader, so this one knows the part of TOML that the
  # file needs (tables, one-line strings, integers, arrays of strings) and refuses all the rest.
  module Machines
    DEFAULTS = { "windows" => "2022", "cpus" => 4, "memory_mib" => 12_288, "firmware" => "bios",
                 "slots" => 1, "tags" => [].freeze }.freeze
    CHECKS = {
      "windows" => [->(value) { %w[2022 2025].include?(value) }, '"2022" or "2025"'],
      "cpus" => [->(value) { value.is_a?(Integer) && value.between?(2, 256) }, "2 to 256"],
      # Nested Hyper-V wants its memory fixed; with less a utility VM has no room beside Windows.
      "memory_mib" => [->(value) { value.is_a?(Integer) && value >= 8192 }, "8192 or more"],
      "firmware" => [->(value) { %w[bios uefi].include?(value) }, '"bios" or "uefi"'],
      "slots" => [->(value) { value.is_a?(Integer) && value.between?(1, 256) }, "1 to 256"],
      "tags" => [->(value) { value.is_a?(Array) }, "an array of strings"]
    }.freeze
    NAME = /\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\z/
    KEY = /[A-Za-z0-9_-]+/
    STRING = /"[^"\\]*"|'[^']*'/
    REST = /\s*(?:#.*)?\z/
    TABLE = /\A\s*\[\s*(#{KEY}(?:\s*\.\s*(?:#{KEY}|#{STRING}))?)\s*\]#{REST}/
    PAIR = /\A\s*(#{KEY})\s*=\s*(.+)\z/
    INTEGER = /\A(0|[1-9][0-9]*)#{REST}/
    TEXT = /\A(#{STRING})#{REST}/
    ARRAY = /\A\[\s*((?:#{STRING}\s*,\s*)*(?:#{STRING})?)\s*\]#{REST}/

    module_function

    def load(path)
      parse(File.read(path, encoding: "UTF-8"), source: path)
    rescue SystemCallError => e
      raise MachinesError, "cannot read the file of machines: #{e.message}"
    end

    def parse(text, source: "machines.toml")
      tables = read(text, source)
      defaults = DEFAULTS.merge(tables.delete("defaults") || {})
      machines = tables.map do |table, values|
        name = table.delete_prefix("machines.")
        check(defaults.merge(values), "#{source}: [#{table}]")
        Machine.new(name: name, **defaults.merge(values).transform_keys(&:to_sym))
      end
      raise MachinesError, "#{source}: no machine in it: add [machines.NAME]" if machines.empty?

      unique_hostnames(machines, source)
      machines
    end

    def read(text, source)
      tables = {}
      current = nil
      text.each_line(chomp: true).with_index(1) do |line, number|
        next if line.match?(/\A#{REST}/)

        at = "#{source}:#{number}"
        if (found = line.match(TABLE))
          table = table_name(found[1], at)
          raise MachinesError, "#{at}: [#{table}] stands there twice" if tables.key?(table)

          current = tables[table] = {}
        elsif (found = line.match(PAIR))
          raise MachinesError, "#{at}: a key before any table: write [defaults] first" unless current

          add(current, found[1], found[2], at)
        else
          raise MachinesError, "#{at}: neither [table] nor key = value"
        end
      end
      tables
    end

    def table_name(text, at)
      first, name = text.split(/\s*\.\s*/, 2)
      return "defaults" if text == "defaults"

      name = name[1..-2] if name&.match?(/\A["']/)
      unless first == "machines" && name&.match?(NAME)
        raise MachinesError, "#{at}: write [defaults] or [machines.NAME], not [#{text}]"
      end

      "machines.#{name}"
    end

    def add(table, key, raw, at)
      unless DEFAULTS.key?(key)
        near = DidYouMean::SpellChecker.new(dictionary: DEFAULTS.keys).correct(key).first
        raise MachinesError, "#{at}: #{key} is not known#{near && "; did you mean #{near}?"}"
      end
      raise MachinesError, "#{at}: #{key} stands there twice" if table.key?(key)

      table[key] = value(raw, at)
    end

    def value(raw, at)
      case raw
      when INTEGER then Regexp.last_match(1).to_i
      when TEXT then Regexp.last_match(1)[1..-2]
      when ARRAY then Regexp.last_match(1).scan(STRING).map { |item| item[1..-2] }
      else
        raise MachinesError, "#{at}: write a number, a \"text\" without backslashes, or [\"a\", \"b\"]"
      end
    end

    def check(values, at)
      values.each do |key, value|
        fine, wanted = CHECKS.fetch(key)
        raise MachinesError, "#{at}: #{key} is #{wanted}, not #{value.inspect}" unless fine.call(value)
      end
    end

    def unique_hostnames(machines, source)
      machines.group_by { |machine| machine.hostname.downcase }.each do |hostname, same|
        next if same.one?

        raise MachinesError, "#{source}: #{same.map(&:name).join(' and ')} would both be called " \
                             "#{hostname}: make their first 15 characters differ"
      end
    end
  end
end
